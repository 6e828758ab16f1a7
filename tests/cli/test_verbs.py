"""Each verb once on a small model."""

import json
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lissom.artifact import save
from lissom.compress import quantize_model
from lissom.engine.kernels import native
from lissom.errors import DataError
from lissom.evaluate import METRICS
from lissom.evaluate.tasks.continuation import LIKELIEST
from lissom.types import Budget

Tiny = Callable[..., Path]
Run = Callable[..., Any]


def test_compress_evaluate_and_bench(
    run: Run, tiny: Tiny, recipe: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lissom.hardware

    limits = lissom.hardware.limits
    monkeypatch.setattr(lissom.hardware, "limits", lambda seconds: limits(0.01, size=64, read_bytes=2**20))
    source, out = tiny("qwen3"), tmp_path / "out"
    done = run("compress", source, "--recipe", recipe, "--data", text, "--length", 16, "--windows", 8, "--out", out)
    assert (done.code, done.error) == (0, "")
    assert "x smaller than" in done.out
    assert {"config.json", "lissom.json", "tokenizer.json"} <= {file.name for file in out.iterdir()}
    common = ("--data", text, "--length", 16, "--examples", 12)
    alone = run("evaluate", out, *common, "--json")
    assert alone.code == 0
    perplexity = json.loads(alone.out)["perplexity"]
    assert perplexity["low"] < perplexity["value"] < perplexity["high"]
    assert perplexity["n"] == 12
    beside = run("evaluate", out, "--original", source, *common, "--json")
    figures = json.loads(beside.out)
    assert figures["perplexity"] == perplexity
    assert set(figures) == {"perplexity", "perplexity of the original", "drop", "KL divergence", "same top-1"}
    assert figures["KL divergence"]["value"] > 0
    bench = json.loads(run("bench", out, "--prompt", 4, "--new", 2, "--batch", "1,3", "--json").out)
    if native.kernels() and sys.platform == "linux":
        assert 0 < bench["resident_bytes"] < 60e6  # nothing of PyTorch is in its process
    assert bench["load_ms"] >= 0
    rates = {name: figure for name, figure in bench.items() if isinstance(figure, dict)}
    assert {name.partition(", ")[2] for name in rates} == {"1 at once", "3 at once"}
    assert all(figure["value"] > 0 for figure in rates.values())
    long = run("bench", out, "--prompt", 10**6)
    assert (long.code, "exceed the context" in long.error) == (2, True)
    wrong = run("bench", out, "--batch", "1,0")
    assert (wrong.code, wrong.error.count("\n")) == (2, 1)
    assert "such as 1,4,16" in wrong.error


def test_compress_needs_no_data(run: Run, tiny: Tiny, recipe: Path, tmp_path: Path) -> None:
    done = run("compress", tiny("llama", True), "--recipe", recipe, "--out", tmp_path / "out", "--json")
    assert (done.code, done.error) == (0, "")
    assert (tmp_path / "out" / "lissom.json").is_file()
    first, *parts, last = events(done)
    assert (first["stage"], first["total"]) == ("read", None)
    assert [(part["text"], part["done"], part["total"]) for part in parts] == [
        ("model.embed_tokens", 1, 4),
        ("model.layers.0", 2, 4),
        ("model.layers.1", 3, 4),
        ("model.norm", 4, 4),
    ]
    stored = sum(file.stat().st_size for file in (tmp_path / "out").glob("*.safetensors"))
    assert (last["event"], last["folder"], last["bytes_after"]) == ("result", str(tmp_path / "out"), stored)


def events(done: Any) -> list[dict[str, Any]]:
    """What was told: every line is an event, and all but the last tell of progress."""
    found = [json.loads(line) for line in done.lines]
    assert [event["event"] for event in found[:-1]] == ["progress"] * (len(found) - 1)
    for event in found[:-1]:
        assert event["peak_bytes"] > 2**20
        assert event["total"] is None or 0 <= event["done"] <= event["total"]
        assert event["seconds_left"] is None or event["seconds_left"] >= 0
    seconds = [event["seconds"] for event in found[:-1]]
    assert seconds == sorted(seconds)
    return found


def test_optimize_a_module_and_use_it(run: Run, module: Path, arrays: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    common = ("optimize", module, "--data", arrays, "--max-drop", "2%", "--prefer", "size", "--out", out)
    for name, labels in {"few": np.arange(9), "floats": np.zeros(1500)}.items():
        np.save(tmp_path / f"{name}.npy", labels)
    assert (
        "where an integer for each of 1500 examples is needed" in run(*common, "--clusters", tmp_path / "few.npy").error
    )
    assert "it holds float64" in run(*common, "--clusters", tmp_path / "floats.npy").error
    assert "it holds several arrays" in run(*common, "--clusters", arrays).error
    assert "is no .npy file of integers" in run(*common, "--clusters", tmp_path / "none.npy").error
    np.save(tmp_path / "pairs.npy", np.arange(1500) // 2)
    done = run(*common, "--clusters", tmp_path / "pairs.npy")
    assert (done.code, done.error) == (0, "")
    assert "PASS" in done.out
    assert "<html" in (out / "report.html").read_text(encoding="utf-8")
    manifest = json.loads((out / "lissom.json").read_text())
    assert manifest["certificate"]["verdict"] == "PASS"
    assert manifest["certificate"]["max_drop"] == 0.02
    assert manifest["certificate"]["n"] <= 375  # pairs of the half that certifies
    accuracy = json.loads(run("evaluate", out, "--data", arrays, "--original", module, "--json").out)
    assert set(accuracy) == {"accuracy", "accuracy of the original", "drop", "flips", "KL divergence", "same top-1"}
    assert accuracy["accuracy"]["value"] > 0.9
    with np.load(arrays) as found:
        np.savez(tmp_path / "double.npz", x=found["x"].astype(np.float64), y=found["y"])  # as numpy makes them
    assert run("evaluate", out, "--data", tmp_path / "double.npz").code == 0
    printed = run("evaluate", out, "--data", arrays)
    assert printed.out.startswith("accuracy")
    bench = run("bench", out)
    assert bench.code == 0
    assert "latency" in bench.out


class Two(torch.nn.Module):
    """Tells by two inputs, of which the second hides parts of the first."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(8, 3)

    def forward(self, values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.layer(values * mask)  # type: ignore[no-any-return]


def test_a_module_of_several_inputs_reads_arrays_by_their_names(run: Run, tmp_path: Path) -> None:
    model = Two()
    inputs = {"values": torch.randn(40, 8), "mask": torch.randint(2, (40, 8)).float()}
    save(quantize_model(model), tmp_path / "out", example=inputs)
    with torch.no_grad():
        labels = model(**inputs).argmax(1).numpy()
    given = {name: part.double().numpy() for name, part in inputs.items()}
    np.savez(tmp_path / "data.npz", labels=labels, **given)
    found = json.loads(run("evaluate", tmp_path / "out", "--data", tmp_path / "data.npz", "--json").out)
    assert found["accuracy"]["value"] > 0.9
    assert found["accuracy"]["n"] == 40
    np.savez(tmp_path / "less.npz", labels=labels, values=given["values"])
    assert "the model takes values, mask" in run("evaluate", tmp_path / "out", "--data", tmp_path / "less.npz").error


def test_optimize_that_finds_nothing_says_so_and_writes_only_the_report(
    run: Run, arrays: Path, module: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lissom.search import forms

    ruined = {forms.ORIGINAL: (), forms.SAFE: ({"technique": "magnitude", "sparsity": 0.99},)}
    monkeypatch.setattr(forms, "FORMS", ruined)
    out, report = tmp_path / "out", tmp_path / "report.html"
    done = run("optimize", module, "--data", arrays, "--max-drop", "0.02", "--out", out, "--report", report)
    assert (done.code, done.error) == (1, "")
    assert "no candidate stayed inside the budget" in done.out
    assert report.is_file()
    assert not out.exists()


def test_optimize_a_language_model(
    run: Run, tiny: Tiny, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lissom.search import forms, language, latency, trying

    monkeypatch.setattr(trying, "ROUNDS", 3)
    monkeypatch.setattr(latency, "MOST", 9)  # tiny times are never known well
    monkeypatch.setattr(language, "WRITTEN", 2)
    few = (forms.ORIGINAL, forms.SAFE, "4 bits")
    for table in ("FORMS", "LOOKED_UP"):
        monkeypatch.setattr(forms, table, {name: getattr(forms, table)[name] for name in few})
    out = tmp_path / "out"
    drops = ("--max-drop", "20%", "--max-drop", "agreement=80%")
    options = (*drops, "--length", 16, "--windows", 40, "--prefer", "size")
    done = run("optimize", tiny("llama", True), "--data", text, *options, "--out", out, "--json")
    assert (done.code, done.error) == (0, "")
    *told, result = events(done)
    stages = list(dict.fromkeys(event["stage"] for event in told))
    assert stages == ["read", "calibrate", "latency", "choose", "steps", "time", "certify", "write"]
    assert "calibrate" in {event["stage"] for event in told if event["done"] == event["total"] is not None}
    frontiers = [(event["stage"], event["frontier"]) for event in told if "frontier" in event]
    assert all(one != other for (_, one), (_, other) in pairwise(frontiers))
    assert {stage for stage, _ in frontiers} == {"choose", "certify"}
    for stage, points in frontiers:
        costs = [point["cost"] for point in points]
        assert costs == ([None] * len(points) if stage == "choose" else sorted(costs))
        assert all(point["nbytes"] > 0 and point["drop"] < 0.2 for point in points)
    chosen = result["chosen"]
    assert ("PASS", chosen["nbytes"]) in [(point["verdict"], point["nbytes"]) for point in frontiers[-1][1]]
    assert (result["event"], result["verdict"], result["certificate"]["verdict"]) == ("result", "PASS", "PASS")
    assert (result["folder"], result["report"]) == (str(out), str(out / "report.html"))
    assert chosen in result["points"]
    manifest = json.loads((out / "lissom.json").read_text())
    assert manifest["kind"] == "language_model"
    assert manifest["certificate"]["verdict"] == "PASS"
    limits = {name: part["max_drop"] for name, part in manifest["certificate"]["parts"].items()}
    assert limits == {"perplexity": 0.2, "agreement": 0.8}
    assert set(result["certificate"]["parts"]) == {"perplexity", "agreement"}
    assert run("evaluate", out, "--data", text, "--length", 16, "--examples", 10).code == 0


def test_a_task_is_what_a_language_model_is_optimized_for(
    run: Run, tiny: Tiny, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text calibrates, the task's file is scored, and the budget is the task's."""
    told: dict[str, Any] = {}

    def search(model: str, windows: Any, budgets: Any, *, examples: Any, **rest: Any) -> None:
        told.update(windows=windows, budgets=budgets, examples=examples)
        raise DataError("this is as far as it goes")

    monkeypatch.setattr("lissom.search.optimize", search)
    asked = [{"context": "Lily saw a", "choices": [" dog", " tree"], "answer": number % 2} for number in range(60)]
    (tmp_path / "asked.jsonl").write_text("\n".join(map(json.dumps, asked)))
    common = ("optimize", tiny("llama"), "--data", text, "--out", tmp_path / "out", "--length", 16, "--windows", 20)
    task = ("--task", "choices", "--task-data", tmp_path / "asked.jsonl")
    assert "this is as far as it goes" in run(*common, *task, "--budget", "20%", "--relative").error
    assert told["budgets"] == {LIKELIEST: Budget(max_drop=0.2, relative=True)}
    assert told["windows"].shape == (20, 16)
    assert told["examples"]["labels"].tolist() == [0, 1] * 30
    assert "--task-data: give examples of choices" in run(*common, "--task", "choices").error
    assert "say by --task what it holds" in run(*common, "--task-data", text).error
    assert "with --task the budget is the task's" in run(*common, *task, "--budget", "kl=1%").error


def test_recut_certifies_with_the_data_of_the_search(
    run: Run, module: Path, arrays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[str, Any] = {}

    def cut(work: Path, out: Path, **given: Any) -> None:
        told.update(given, work=work)
        raise DataError("this is as far as it goes")

    monkeypatch.setattr("lissom.search.recut", cut)
    common = ("recut", tmp_path / "small", "--out", tmp_path / "out", "--size", "3kB")
    assert "name by --original the model that optimize was given" in run(*common, "--data", arrays).error
    drops = ("--max-drop", "2%", "--budget", "agreement=5%")
    assert "as far as it goes" in run(*common, "--data", arrays, "--original", module, *drops).error
    assert told["budget"] == {
        METRICS["accuracy"]: Budget(max_drop=0.02),
        METRICS["agreement"]: Budget(max_drop=0.05),
    }
    assert (told["size"], told["work"]) == (3000, tmp_path / "small.bank")
    assert [part.shape[0] for part in told["data"]] == [1500, 1500]
    assert told["model"] is not None
    np.save(tmp_path / "labels.npy", np.arange(1500))
    run(*common, "--clusters", tmp_path / "labels.npy")
    assert (told["budget"], told["data"], told["model"]) == (None, None, None)
    assert told["clusters"].shape == (1500,)


def test_hardware(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import lissom.hardware
    from lissom.estimate import Estimate

    class Limits:
        def as_dict(self) -> dict[str, Estimate]:
            return {"read_one": Estimate(value=10.0, low=9.0, high=11.0, n=5, unit="GB/s")}

    monkeypatch.setattr(lissom.hardware, "limits", Limits)  # tests/hardware measures the real ones
    found = json.loads(run("hardware", "--json").out)
    assert found["read_one"]["unit"] == "GB/s"
    assert int(found["cores"]) >= 1
    assert "GB/s" in run("hardware").out


def test_help_names_every_verb(run: Run) -> None:
    done = run("--help")
    assert done.code == 0
    for verb in ("compress", "optimize", "evaluate", "bench", "hardware", "serve"):
        assert f" {verb} " in done.out
