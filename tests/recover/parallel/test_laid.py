"""Laid out: whatever the layout, the format and what moves, two workers learn what one learns alone."""

import json
from collections.abc import Callable
from pathlib import Path
from runpy import run_path

import pytest
import torch
import transformers
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

import lissom
from lissom.errors import DataError, ModelError, RecipeError
from lissom.formats import unfreeze
from lissom.models.families import FAMILIES
from lissom.recover.feed import Lot
from lissom.recover.parallel.pieces import Piece, assembled, united
from lissom.recover.parallel.pipeline import SCHEDULES, parts_of, places
from lissom.recover.parallel.tensor import Cutter, cut_model
from lissom.recover.training import STAGES

SCRIPT = Path(__file__).with_name("laying.py")
LAYING = run_path(str(SCRIPT))
CASES, learned = LAYING["CASES"], LAYING["learned"]
NEAR = 3e-4  # where products are not of bfloat16, the sums of which have no order
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
    assert together[name] == pytest.approx(alone, rel=0.01 if name.endswith("narrow") else NEAR)
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


class FourWorkers(DeviceMesh):
    """A mesh of one axis, as far as cutting asks of it."""

    def __init__(self) -> None:
        pass

    def size(self, mesh_dim: int | None = None) -> int:
        return 4

    def get_local_rank(self, mesh_dim: int | str | None = None) -> int:
        return 1


def test_what_cannot_be_cut_is_refused(tiny: Tiny) -> None:
    mesh = FourWorkers()
    with pytest.raises(ModelError, match="Linear is no language model of llama"):
        cut_model(nn.Linear(4, 4), mesh)
    original = transformers.AutoModelForCausalLM.from_pretrained(tiny("llama", True))
    with pytest.raises(RecipeError, match=r"layers\.0\.self_attn has 2 heads of keys, 1 of which .* tensor=2 at most"):
        cut_model(original, mesh)
    turned = [{"technique": "hadamard", "layers": "*o_proj"}, {"technique": "rtn", "bits": 4, "group": 8}]
    with pytest.raises(RecipeError, match="a matrix in the format turned cannot be cut along its inputs"):
        cut_model(unfreeze(lissom.compress_model(original, steps=turned)), mesh)
    original.model.layers[1].mlp.up_proj = original.model.layers[0].mlp.up_proj
    tied = unfreeze(lissom.compress_model(original, steps=[{"technique": "rtn", "bits": 4, "group": 8}]))
    with pytest.raises(RecipeError, match=r"0\.mlp\.up_proj\S* and 1\.mlp\.up_proj\S* are one"):
        cut_model(tied, mesh)


def test_neurons_are_shared_out_in_whole_groups(tiny: Tiny) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny("llama", True))
    small = unfreeze(lissom.compress_model(model, steps=[{"technique": "rtn", "bits": 4, "group": 32}]))
    reader = small.get_submodule("model.layers.0.mlp.down_proj")
    cutter = Cutter(FourWorkers())
    with pytest.raises(RecipeError, match="has 64 neurons, 32 of which stay together in whole groups; take tensor=2"):
        cutter.range("down", "neurons", reader, 64, 1)
    cutter.count = 2
    assert cutter.range("down", "neurons", reader, 64, 1) == (32, 64)
