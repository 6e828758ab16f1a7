"""Workers: what real processes, started by torchrun, learn together is what one learns alone."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import lissom
from lissom.calibrate.texts import read_windows
from lissom.errors import RecipeError
from lissom.models import Checkpoint
from lissom.recover.folder import recover_folder
from lissom.recover.model import recover_model
from lissom.recover.parallel.workers import ALONE
from lissom.recover.training import Training
from lissom.types import Recipe

PATIENCE_S = 300
DYING = Path(__file__).with_name("dying.py")
Tiny = Callable[..., Path]


def torchrun(count: int, *words: object, restarts: int = 0) -> list[str]:
    """What is printed when a script, or a module after -m, is run by so many workers."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    done = subprocess.run(
        [*start, "--max-restarts", str(restarts), *map(str, words)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


def lissom_events(count: int, *words: object) -> list[dict[str, Any]]:
    """The events of a command of lissom, run by so many workers."""
    return [json.loads(line) for line in torchrun(count, "-m", "lissom.cli", *words)]


@pytest.fixture(scope="module")
def places(tiny: Tiny, demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A checkpoint, what was made of it, and a text."""
    original, place = tiny("llama", True), tmp_path_factory.mktemp("workers")
    steps = [{"technique": "rtn", "bits": 3, "group": 16}]
    none = torch.empty(0, 8, dtype=torch.long)
    lissom.compress_checkpoint(original, Recipe.of(steps), none, place / "small")
    text = (demo_folder / "stories.txt").read_text(encoding="utf-8")[:9000]
    (place / "text.txt").write_text(text, encoding="utf-8")
    return original, place / "small", place / "text.txt"


def losses(out: Path) -> list[float]:
    """Those on what was held out."""
    manifest = json.loads((out / "lissom.json").read_text(encoding="utf-8"))
    return [look["held"] for look in manifest["recovery"]["looks"]]


def test_two_workers_learn_what_one_learns(places: tuple[Path, Path, Path], tmp_path: Path) -> None:
    original, small, text = places
    words = ("recover", small, "--original", original, "--data", text, "--length", 16, "--batch", 8, "--steps", 20)
    more = ("--json", "--out")
    windows = read_windows([text], Checkpoint(original).tokenizer(), 16)
    one = recover_folder(small, windows, tmp_path / "one", Training(batch=8, steps=20), original=original).curve.after
    two = lissom_events(2, *words, "--accumulate", 2, *more, tmp_path / "two")
    assert [event["event"] for event in two].count("result") == 1  # the others are silent
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=2e-3)
    assert losses(tmp_path / "two")[-1] < losses(tmp_path / "two")[0]
    assert two[-1]["loss_after"] == pytest.approx(one.held, rel=2e-3)
    few = lissom_events(2, *words, "--gradients", "int8", *more, tmp_path / "few")
    assert few[-1]["loss_after"] == pytest.approx(one.held, rel=0.02)


def test_alone_nothing_is_asked_of_anybody() -> None:
    assert ALONE.first
    assert ALONE.mean(6.0, 3.0) == 2
    assert ALONE.agreed(5.0) == 5
    assert ALONE.told(None) is None
    kept = ({"a": 1}, {"x": torch.ones(2)})
    assert ALONE.told(kept) is kept
    model = torch.nn.Sequential(torch.nn.Linear(4, 3))
    with pytest.raises(RecipeError, match="between workers, and there is one"):
        recover_model(lissom.quantize_model(model), torch.zeros(8, 4), Training(gradients="int8"), original=model)
    with pytest.raises(RecipeError, match="gradients='int3' is not possible; choose float32, int8"):
        Training(gradients="int3")


def test_a_worker_that_dies_is_replaced_and_all_go_on_to_the_same_bytes(
    places: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    original, small, text = places
    words = (DYING, original, small, text)
    torchrun(2, *words, tmp_path / "whole", -1)
    told = torchrun(2, *words, tmp_path / "out", 3, restarts=1)
    assert [line for line in told if line.startswith("died")] == ["died at look 3"]
    for file in sorted((tmp_path / "whole").glob("*.safetensors")):
        assert file.read_bytes() == (tmp_path / "out" / file.name).read_bytes(), file.name
    assert losses(tmp_path / "out") == losses(tmp_path / "whole")
