"""What is no JSON object is told with the name of the file."""

from pathlib import Path

import pytest

from lissom.errors import ArtifactError
from lissom.files import read_json


@pytest.mark.parametrize(("text", "message"), [("{", "cannot be read"), ("[]", "holds no JSON object")])
def test_what_is_no_json_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ArtifactError, match=message):
        read_json(tmp_path / "config.json")
