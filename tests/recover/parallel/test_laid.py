"""Laid out: whatever the layout, the format and what moves, two workers learn what one learns alone."""

import json
from collections.abc import Callable
from pathlib import Path
from runpy import run_path

import pytest
import torch

from lissom.errors import DataError
from lissom.models.families import FAMILIES
from lissom.recover.feed import Lot
from lissom.recover.parallel.pieces import Piece, assembled, united
from lissom.recover.parallel.pipeline import SCHEDULES, parts_of, places
from lissom.recover.training import STAGES

SCRIPT = Path(__file__).with_name("laying.py")
LAYING = run_path(str(SCRIPT))
CASES, learned = LAYING["CASES"], LAYING["learned"]
NEAR = 3e-4
Tiny = Callable[..., Path]


@pytest.fixture(scope="module")
def folder(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of each family, by its name."""
    found = tmp_path_factory.mktemp("families")
    for name in FAMILIES:
        (found / name).symlink_to(tiny(name, name in ("llama", "gemma2")))
    return found


@pytest.fixture(scope="module")
def together(folder: Path, torchrun: Callable[..., list[str]]) -> dict[str, list[float]]:
    """How two workers learned, case by case."""
    found: dict[str, list[float]] = json.loads(torchrun(2, SCRIPT, folder)[-1])
    return found


@pytest.mark.parametrize("name", CASES)
def test_two_workers_learn_what_one_learns_alone(name: str, folder: Path, together: dict[str, list[float]]) -> None:
    if name.endswith("local"):
        assert together[name][2] < 0.99 * together[name][0]  # each goes its own way for a while
        return
    alone = learned(CASES[name], folder, "")
    assert together[name] == pytest.approx(alone, rel=NEAR)
    assert alone[2] < (1 - 3 * NEAR) * alone[0]  # that something was learned


def test_wholes_are_put_together_of_pieces() -> None:
    whole = torch.arange(12.0).view(4, 3)
    rows = [Piece(shape=(4, 3), dim=0, places=torch.tensor(own)) for own in ([0, 3], [1, 2])]
    columns = [Piece(shape=(4, 3), dim=1, places=torch.tensor(own)) for own in ([0], [1, 2])]
    pieces = [{"a.w": rows[n], "b.w": columns[n]} for n in (0, 1)]
    kept = [
        {f"phi {name}": own.of(whole) for name, own in several.items()} | {"step a.w": torch.tensor(3.0)}
        for several in pieces
    ]
    kept[1]["phi c.w"] = torch.ones(2)
    found = assembled(kept, pieces)
    assert torch.equal(found["phi a.w"], whole)
    assert torch.equal(found["phi b.w"], whole)
    assert found["step a.w"] == 3
    assert torch.equal(found["phi c.w"], torch.ones(2))
    one, other = {"dict": [["x", 1], ["y", {"dict": [["p", 2]]}]]}, {"dict": [["y", {"dict": [["q", 3]]}]]}
    assert united([one, other]) == {"dict": [["x", 1], ["y", {"dict": [["p", 2], ["q", 3]]}]]}


def test_schedules_are_those_one_can_ask_for() -> None:
    assert tuple(SCHEDULES) == STAGES
    assert places("1f1b", 3) == [0, 1, 2]
    assert places("interleaved", 2) == [0, 1, 0, 1]
    assert places("zbv", 3) == [0, 1, 2, 2, 1, 0]


def test_a_batch_is_cut_into_equal_parts() -> None:
    lot = Lot(torch.zeros(12, 3))
    assert [len(part.batch) for part in parts_of(lot, 1, 2)] == [2] * 6
    assert [len(part.batch) for part in parts_of(lot, 4, 2)] == [3] * 4
    with pytest.raises(DataError, match="12 examples of a batch to a worker cannot be cut into 5 equal parts"):
        parts_of(lot, 5, 2)
