"""`lissom recover`: learning, racing, until a budget is kept, and what it says of mistakes."""

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from lissom.artifact import read_manifest

RAY = find_spec("ray") is not None
Tiny = Callable[..., Path]
Run = Callable[..., Any]


@pytest.fixture
def small(run: Run, tiny: Tiny, recipe: Path, tmp_path: Path) -> tuple[Path, Path]:
    original, out = tiny("llama", True), tmp_path / "small"
    assert run("compress", original, "--recipe", recipe, "--out", out).code == 0
    return original, out


def test_a_language_model_learns_from_a_text(run: Run, small: tuple[Path, Path], text: Path, tmp_path: Path) -> None:
    original, artifact = small
    out = tmp_path / "out"
    words = ("--data", text, "--length", 16, "--tokens", 2000, "--batch", 8, "--out", out)
    done = run("recover", artifact, "--original", original, *words)
    assert (done.code, done.error) == (0, "")
    assert f"{out}: the loss on what was held out went from" in done.out
    page = (out / "recovery.html").read_text(encoding="utf-8")
    assert "recovery.html" in read_manifest(out)["files"]
    assert "<script" not in page
    assert page.count("<svg") == 1
    evaluated = json.loads(run("evaluate", out, "--data", text, "--length", 16, "--json", "--examples", 4).out)
    assert evaluated["perplexity"]["value"] > 1


def test_algorithms_race_and_events_are_told(run: Run, small: tuple[Path, Path], text: Path, tmp_path: Path) -> None:
    _, artifact = small
    out = tmp_path / "out"
    words = ("--data", text, "--length", 16, "--steps", 4, "--batch", 4, "--out", out, "--json")
    done = run("recover", artifact, "--labels", "--compare", "sgd,adamw,lion", "--seeds", 2, *words)
    assert done.code == 0
    events = [json.loads(line) for line in done.lines]
    assert [event["event"] for event in events] == ["progress"] * (len(events) - 1) + ["result"]
    assert {"sgd, seed 0", "lion, seed 1"} <= {event["text"] for event in events[:-1]}
    assert events[-1]["loss_after"] <= events[-1]["loss_before"]
    page = (out / "recovery.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 3
    for name in ("sgd", "adamw", "lion"):
        assert f'<td class="name">{name}</td>' in page


def test_until_a_budget_is_kept(run: Run, module: Path, arrays: Path, tmp_path: Path) -> None:
    import lissom

    small, out = tmp_path / "small", tmp_path / "out"
    model = lissom.quantize_model(lissom.load(module), bits=2)
    import torch

    lissom.save(model, small, example=torch.zeros(2, 32))
    words = ("--original", module, "--data", arrays, "--test", arrays, "--steps", 60, "--out", out)
    done = run("recover", small, *words, "--until-budget", "10%")
    assert (done.code, done.error) == (0, "")
    assert "PASS" in done.out
    assert read_manifest(out)["certificate"]["verdict"] == "PASS"
    done = run("recover", small, *words[:-1], tmp_path / "other", "--until-budget", "0%")
    assert (done.code, done.error) == (1, "")  # nothing can be certified to be no worse at all
    assert read_manifest(tmp_path / "other").get("certificate", {}).get("verdict") != "PASS"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "give --original MODEL to learn what that predicts, or else --labels"),
        (["--labels", "--original", "x"], "or else --labels"),
        (["--labels", "--optimizer", "adamm"], "did you mean 'adam'"),
        (["--labels", "--train", "weight"], "choose weights, scales, lora or all"),
        (["--labels", "--tokens", "9", "--steps", "3"], "both say how long to learn"),
        (["--labels", "--until-budget", "1%"], "--until-budget: give --original"),
        (["--labels", "--test", "x.txt"], "it is what --until-budget is certified by"),
        (["--labels", "--compare", "sgd,adam", "--parallel", "data=2"], "a race is for one worker"),
        (["--labels", "--compare", "sgd,adam", "--ray", "local", "--workers", "2"], "--ray: a race is for one worker"),
        (["--labels", "--ray", "local"], "how many workers? give --workers 2"),
        (["--labels", "--workers", "2"], "it is how many Ray starts; give --ray too"),
        (["--labels", "--ray", "head", "--workers", "2"], "HOST:PORT of a cluster" if RAY else "'lissom[ray]'"),
        (["--labels", "--top-k", "4"], "are of an original"),
        (["--labels", "--compare", "sgd"], "name two or more"),
    ],
)
def test_mistakes_are_one_line(
    run: Run, small: tuple[Path, Path], text: Path, tmp_path: Path, words: list[str], told: str
) -> None:
    done = run("recover", small[1], "--data", text, "--length", 16, "--out", tmp_path / "out", *words)
    assert (done.code, done.error.count("\n")) == (2, 1)
    assert told in done.error
    assert not (tmp_path / "out").exists()
