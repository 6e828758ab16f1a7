"""Progress as text: who only prints it sees what is being done."""

import pytest

from lissom.progress import Progress, Tell


def test_an_event_is_printed_as_its_text(capsys: pytest.CaptureFixture[str]) -> None:
    tell: Tell = print
    tell(Progress(stage="latency", text="mlp: 4 bits", done=3, total=8))
    assert capsys.readouterr().out == "mlp: 4 bits\n"
