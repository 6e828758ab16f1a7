"""A cluster: what workers of Ray learn is what one learns alone, also when they are killed; and what is refused."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import lissom
from lissom.calibrate.data import each, tensors
from lissom.calibrate.texts import read_windows
from lissom.errors import ArtifactError, RecipeError
from lissom.evaluate import Metric
from lissom.models import Checkpoint
from lissom.recover import cluster
from lissom.recover.cluster import Asked, by_name, check_worker, reach, read, recover_on_ray, room
from lissom.recover.folder import recover_folder
from lissom.recover.training import Training
from lissom.types import Budget, Recipe

Tiny = Callable[..., Path]
NEAR = 1e-3  # sums are taken in another order
STEPS = 200
LATEST_S = 400


def test_workers_that_are_killed_are_replaced_and_the_loss_is_that_of_one_alone(
    tiny: Tiny, demo_folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("ray", reason="needs Ray; pip install 'lissom[ray]'")
    original, small, text = tiny("llama", True), tmp_path / "small", tmp_path / "text.txt"
    steps = [{"technique": "rtn", "bits": 3, "group": 16}]
    lissom.compress_checkpoint(original, Recipe.of(steps), torch.empty(0, 8, dtype=torch.long), small)
    text.write_text((demo_folder / "stories.txt").read_text(encoding="utf-8")[:9000], encoding="utf-8")
    words = ("--original", original, "--data", text, "--length", 16, "--batch", 8, "--steps", STEPS)
    more = ("--ray", "local", "--workers", 2, "--json", "--out", tmp_path / "out")
    events = watched(["recover", small, *words, *more], {2: "1", 5: "0"})
    told = [event["text"] for event in events if event["event"] == "progress"]
    assert [sum(text.startswith(f"worker {rank} of 2 is process") for text in told) for rank in "01"] == [3, 3]
    assert events[-1]["event"] == "result"
    windows = read_windows([text], Checkpoint(original).tokenizer(), 16)
    alone = recover_folder(small, windows, tmp_path / "alone", Training(steps=STEPS, batch=8), original=original)
    manifest = json.loads((tmp_path / "out" / "lissom.json").read_text(encoding="utf-8"))
    found = [look["held"] for look in manifest["recovery"]["looks"]]
    assert found == pytest.approx([look.held for look in alone.curve.looks], rel=NEAR)
    assert found[-1] < 0.98 * found[0]
    assert sorted(place.name for place in tmp_path.iterdir()) == ["alone", "out", "small", "text.txt"]


def watched(words: list[Any], deaths: dict[int, str]) -> list[dict[str, Any]]:
    """The events of a command, of which at looks of these numbers the worker of this rank is killed."""
    place, looks, events = dict[str, int](), 0, []
    start = [sys.executable, "-m", "lissom.cli", *map(str, words)]
    with subprocess.Popen(start, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        for line in running.stdout:
            events.append(json.loads(line))
            text = events[-1].get("text", "")
            if found := re.match(r"worker (\d) of \d is process (\d+) on", text):
                place[found[1]] = int(found[2])
            looks += text.startswith("loss")
            if text.startswith("loss") and looks in deaths:
                os.kill(place[deaths[looks]], signal.SIGKILL)
        _, error = running.communicate(timeout=LATEST_S)
    assert running.returncode == 0, error[-3000:]
    return events


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RecipeError, match=r"install it: pip install 'lissom\[ray\]'"):
        recover_on_ray("local", 2, tmp_path, torch.zeros(4, 8), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_is_refused_before_ray_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="workers=0"):
        recover_on_ray("local", 0, tmp_path, torch.zeros(4, 8), tmp_path / "out")
    (tmp_path / "taken").touch()
    with pytest.raises(ArtifactError, match="exists already"):
        recover_on_ray("local", 2, tmp_path, torch.zeros(4, 8), tmp_path / "taken")
    with pytest.raises(RecipeError, match="'accuracy' is a metric of your own, which workers do not know"):
        by_name({Metric(name="accuracy", output=lambda output, batch: output): Budget()})
    assert by_name({"accuracy": Budget(max_drop=0.02)})["accuracy"]["max_drop"] == 0.02
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RecipeError, match="torchrun has started some"):
        recover_on_ray("local", 2, tmp_path, torch.zeros(4, 8), tmp_path / "out")


def test_an_address_must_be_one_and_must_answer() -> None:
    for wrong in ("ray://head:10001", "head", "head:", ":6379"):
        with pytest.raises(RecipeError, match="is no HOST:PORT of a cluster"):
            reach(wrong)
    with socket.socket() as bound:  # but it does not listen
        bound.bind(("127.0.0.1", 0))
        with pytest.raises(RecipeError, match=r"nobody answers .* `ray start --head` printed"):
            reach(f"127.0.0.1:{bound.getsockname()[1]}")
        bound.listen()
        reach(f"127.0.0.1:{bound.getsockname()[1]}")


def test_there_must_be_room_and_processors_are_shared_out() -> None:
    small, large, gpus = {"CPU": 4.0}, {"CPU": 16.0}, {"CPU": 8.0, "GPU": 2.0}
    assert room([small, large], 2, 20) == {"CPU": 8}
    assert room([small, large], 5, 20) == {"CPU": 4}
    assert room([small, large], 20, 20) == {"CPU": 1}
    assert room([small, large], 2, 6) == {"CPU": 3}  # others use the rest
    assert room([small, large], 2, 0) == {"CPU": 1}  # it will wait for them
    assert room([gpus, gpus, large], 4, 32) == {"CPU": 4, "GPU": 1}
    with pytest.raises(RecipeError, match=r"room for 20, each with a processor: .* 20 processors and 0 GPUs on 2 mach"):
        room([small, large], 21, 20)
    with pytest.raises(RecipeError, match=r"room for 2, each with a GPU and a processor: .* 2 GPUs on 1 machine;"):
        room([gpus], 3, 8)


@pytest.mark.parametrize(
    "batch",
    [
        torch.randint(0, 2048, (21, 6), dtype=torch.int32),
        (torch.randn(21, 3, 2), torch.arange(21)),
        {"x": torch.randn(21, 5).bfloat16(), "mask": torch.rand(21, 5) > 0.5, "labels": torch.arange(21)},
    ],
)
def test_examples_arrive_as_they_were_sent(batch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "ROWS", 8)
    blocks = cluster.blocks(batch)
    assert [len(block) for block in blocks] == [8, 8, 5]
    told: dict[str, Any] = {}

    def iterated(**words: Any) -> list[dict[str, np.ndarray]]:
        told.update(words)
        return [{"data": block} for block in blocks]

    found = read(SimpleNamespace(iter_batches=iterated), each(batch, lambda part: part[:0]))
    assert told == {"batch_size": None, "batch_format": "numpy"}
    assert type(found) is type(batch)
    for own, sent in zip(tensors(found), tensors(batch), strict=True):
        assert own.dtype == sent.dtype
        assert torch.equal(own, sent)


def test_a_worker_says_what_it_does_not_see(tmp_path: Path) -> None:
    like: dict[str, Tensor] = {}
    asked = Asked(
        folder=tmp_path,
        out=tmp_path / "out",
        training={},
        original=None,
        held=0.05,
        budgets=None,
        layout={},
        like=like,
        code="other",
    )
    for away in (replace(asked, folder=tmp_path / "a"), replace(asked, original=str(tmp_path / "a"))):
        with pytest.raises(ArtifactError, match=r"worker 1 on here does not see .*a; put it on storage that all"):
            check_worker(away, "worker 1 on here")
    with pytest.raises(ArtifactError, match="worker 1 on here has another lissom or torch"):
        check_worker(asked, "worker 1 on here")
