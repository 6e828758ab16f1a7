"""Workers: what real processes, started by torchrun, learn together is what one learns alone, whatever the layout."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from runpy import run_path
from typing import Any

import pytest
import torch

import lissom
from lissom.errors import RecipeError
from lissom.recover.model import recover_model
from lissom.recover.parallel.layout import check_layout, read_layout
from lissom.recover.parallel.workers import ALONE, Workers
from lissom.recover.training import Training
from lissom.types import Recipe

SCRIPT = Path(__file__).with_name("learning_folder.py")
CASE = run_path(str(SCRIPT))
TRAINING, learned = CASE["TRAINING"], CASE["learned"]
NEAR = 2e-3  # sums are taken in another order, and codes of few bits turn over a little sooner or later
Tiny = Callable[..., Path]
Places = tuple[Path, Path, Path]
Run = Callable[..., list[str]]


@pytest.fixture(scope="module")
def places(tiny: Tiny, demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Places:
    """A checkpoint, what was made of it, and a text."""
    original, place = tiny("llama", True), tmp_path_factory.mktemp("workers")
    steps = [{"technique": "rtn", "bits": 3, "group": 16}]
    none = torch.empty(0, 8, dtype=torch.long)
    lissom.compress_checkpoint(original, Recipe.of(steps), none, place / "small")
    text = (demo_folder / "stories.txt").read_text(encoding="utf-8")[:9000]
    (place / "text.txt").write_text(text, encoding="utf-8")
    return original, place / "small", place / "text.txt"


@pytest.fixture(scope="module")
def alone(places: Places, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """How one learned."""
    out = tmp_path_factory.mktemp("alone") / "out"
    learned(*places, out)
    found = losses(out)
    assert found[-1] < 0.98 * found[0]
    return found


def losses(out: Path) -> list[float]:
    """Those on what was held out."""
    manifest = json.loads((out / "lissom.json").read_text(encoding="utf-8"))
    return [look["held"] for look in manifest["recovery"]["looks"]]


def test_the_command_line_under_torchrun(places: Places, alone: list[float], tmp_path: Path, torchrun: Run) -> None:
    original, small, text = places
    words = ("--original", original, "--data", text, "--length", 16, "--batch", 8, "--steps", TRAINING.steps)
    more = ("--gradients", "int8", "--accumulate", 2, "--json", "--out", tmp_path / "out")
    events = [json.loads(line) for line in torchrun(2, "-m", "lissom.cli", "recover", small, *words, *more)]
    assert [event["event"] for event in events].count("result") == 1  # the others are silent
    assert events[-1]["loss_after"] == pytest.approx(min(alone), rel=0.02)


def test_a_worker_that_dies_is_replaced_and_all_go_on(
    places: Places, alone: list[float], tmp_path: Path, torchrun: Run
) -> None:
    told = torchrun(2, SCRIPT, *places, tmp_path / "out", "--die", 4, restarts=1)
    assert [line for line in told if line.startswith("died")] == ["died at look 4"]
    assert losses(tmp_path / "out") == pytest.approx(alone, rel=NEAR)


def test_what_one_layout_has_begun_another_goes_on_with(
    places: Places, alone: list[float], tmp_path: Path, torchrun: Run
) -> None:
    torchrun(4, SCRIPT, *places, tmp_path / "out", "--layout", "pipeline=2,tensor=2", "--stop", 4)
    assert not (tmp_path / "out").exists()
    shutil.copytree(tmp_path / ".out.recover", tmp_path / ".single.recover")
    torchrun(2, SCRIPT, *places, tmp_path / "out", "--layout", "shard=2")
    assert losses(tmp_path / "out") == pytest.approx(alone, rel=NEAR)
    learned(*places, tmp_path / "single")
    assert losses(tmp_path / "single") == pytest.approx(alone, rel=NEAR)
    assert losses(tmp_path / "single")[:3] == losses(tmp_path / "out")[:3]
    written = [lissom.load(tmp_path / name).state_dict() for name in ("out", "single")]
    assert written[0].keys() == written[1].keys()


def test_what_the_original_said_is_remembered_for_all(places: Places, tmp_path: Path, torchrun: Run) -> None:
    torchrun(2, SCRIPT, *places, tmp_path / "both", "--layout", "data=2", "--top-k", 8)
    learned(*places, tmp_path / "single", top_k=8)
    both, single = losses(tmp_path / "both"), losses(tmp_path / "single")
    assert single[-1] < 0.99 * single[0]
    assert both == pytest.approx(single, rel=NEAR)
    assert not list(tmp_path.glob(".*"))


def test_alone_nothing_is_asked_of_anybody() -> None:
    assert ALONE.first
    assert ALONE.mean(6.0, 3.0) == 2
    assert ALONE.agreed(5.0) == 5
    assert ALONE.told(None) is None
    kept: Any = ({"a": 1}, {"x": torch.ones(2)})
    assert ALONE.told(kept) is kept
    model = torch.nn.Sequential(torch.nn.Linear(4, 3))
    with pytest.raises(RecipeError, match="between workers, and there is one"):
        recover_model(lissom.quantize_model(model), torch.zeros(8, 4), Training(gradients="int8"), original=model)
    with pytest.raises(RecipeError, match="gradients='int3' is not possible; choose float32, int8"):
        Training(gradients="int3")


def test_layouts_are_read_and_held_against_the_workers_there_are() -> None:
    assert read_layout("") == {}
    assert read_layout("data=2, shard=4") == {"data": 2, "shard": 4}
    for wrong, told in (("dato=2", "did you mean 'data'"), ("data=0", "no size of an axis; write data=2")):
        with pytest.raises(RecipeError, match=told):
            read_layout(wrong)
    eight = Workers()
    eight.count = 8
    check_layout({"data": 2, "shard": 4}, eight, Training())
    check_layout({}, eight, Training(optimizer="muon", gradients="int8"))
    refused: list[tuple[dict[str, int], dict[str, Any], str]] = [
        ({"data": 2}, {"gradients": "int8"}, "data=2 needs 2 workers, and there are 8"),
        ({"shard": 8}, {"optimizer": "muon"}, "muon must see whole matrices, and all of them, which with shard="),
        ({"tensor": 8}, {"optimizer": "sam"}, "sam must see whole matrices, and all of them, which with tensor="),
        ({"shard": 8}, {"gradients": "int8"}, "along data only"),
        ({"tensor": 8}, {"gradients": "int8"}, "leave out gradients, or add data=2"),
        ({"tensor": 8}, {"local": 4}, "local steps are for several workers along data"),
        ({"data": 8}, {"stages": "zbv"}, "zbv is an order of stages, and there are none"),
        ({"pipeline": 8}, {"hidden": ("*",)}, "leave out hidden, or pipeline"),
        ({"pipeline": 4, "shard": 2}, {"stages": "zbv"}, "zbv has two stages on each worker, which shard cannot"),
    ]
    for layout, said, told in refused:
        with pytest.raises(RecipeError, match=told):
            check_layout(layout, eight, Training(**said))
