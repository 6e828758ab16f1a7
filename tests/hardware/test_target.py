import pytest

from lissom.errors import LissomError
from lissom.hardware import check_target, targets


def test_the_cpu_is_always_a_target():
    assert targets()[0] == "cpu"
    assert check_target("cpu").type == "cpu"


@pytest.mark.parametrize("name", ["tpu", "CPU", ""])
def test_other_targets_are_refused(name):
    with pytest.raises(LissomError, match="possible here: cpu"):
        check_target(name)
