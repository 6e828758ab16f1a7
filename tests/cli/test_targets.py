"""Targets on the command line: the table, one of them, and a frontier for each of several."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lissom.estimate import Estimate
from lissom.search import concluding

Run = Callable[..., Any]


class Limits:
    """Nothing of this machine is measured; tests/hardware does that."""

    def as_dict(self) -> dict[str, Estimate]:
        return {"read_one": Estimate(value=10.0, low=9.0, high=11.0, n=5, unit="GB/s")}


def test_the_table(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lissom.hardware.limits", Limits)
    found = json.loads(run("hardware", "--json").out)
    assert found["read_one"]["unit"] == "GB/s"
    told = {target["kind"]: target for target in found["targets"]}
    assert list(told) == ["cpu", "cuda", "tpu", "fpga"]
    assert (told["cpu"]["here"], told["cpu"]["times"]) == (True, "measured here")
    assert told["tpu"]["here"] is False
    assert told["tpu"]["times"] == "not here; costed by the data sheet, not measured: tpu:v5e, tpu:v5p, tpu:v6e"
    assert [way["becomes"] for way in told["tpu"]["ways"] if "palette" in way["formats"]] == ["8 bits in groups of 32"]
    shown = run("hardware").out
    assert "masked: XLA, as a dense matrix: no chip skips zeros" in shown
    assert "refused: language models" in shown


def test_one_target(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from lissom.search import speeds

    monkeypatch.setattr(speeds, "SIZE", 64)
    found = json.loads(run("hardware", "--target", "tpu:v5e", "--json").out)
    assert (found["target"], found["times"]) == ("tpu:v5e", "costed by the data sheet")
    assert (found["int8_tera"], found["memory_gb"]) == (393, 16)
    forms = {form["form"]: form for form in found["forms"]}
    assert forms["8 bits"]["latency"] > 0
    assert forms["shared 4 bits"]["latency"] is None
    shown = run("hardware", "--target", "tpu:v5e").out
    assert "times are costed by the data sheet, not measured" in shown
    assert "5 µs for each call of a layer" in shown
    here = json.loads(run("hardware", "--target", "cpu", "--json").out)
    assert here["forms"][0]["latency"]["n"] == 15
    circuit = run("hardware", "--target", "fpga:xc7z020clg400-1").out
    assert "of the chip" in circuit
    wrong = run("hardware", "--target", "tpu:v5")
    assert (wrong.code, wrong.error.count("\n")) == (2, 1)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other process opens what is written; tests/search has one that does."""
    monkeypatch.setattr(concluding, "check_parity", lambda *given: {})


def test_each_of_several_targets_has_a_folder_and_the_same_command_goes_on(
    run: Run, module: Path, arrays: Path, tmp_path: Path, alone: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    common = ("optimize", module, "--data", arrays, "--max-drop", "2%", "--prefer", "size", "--out", out)
    words = (*common, "--target", "tpu:v5e, cuda:h100", "--json")
    real, seen = concluding.certified, list[str]()

    def stops(subject: Any, queue: Any, lots: Any, terms: Any) -> Any:
        seen.append(terms.target)
        if len(seen) == 2:
            raise RuntimeError("the machine went away")
        return real(subject, queue, lots, terms)

    monkeypatch.setattr(concluding, "certified", stops)
    with pytest.raises(RuntimeError, match="went away"):
        run(*words)
    assert not out.exists()
    done = run(*words)
    assert (done.code, done.error) == (0, "")
    assert seen == ["tpu:v5e", "cuda:h100"] * 2
    *told, result = [json.loads(line) for line in done.lines]
    compared = [event["text"] for event in told if event["text"].endswith(": compare")]
    assert not [text for text in compared if text.startswith("tpu:v5e")]  # which was done before
    assert list(result["targets"]) == ["tpu:v5e", "cuda:h100"]
    for name, folder in (("tpu:v5e", "tpu-v5e"), ("cuda:h100", "cuda-h100")):
        found = result["targets"][name]
        assert (found["target"], found["verdict"], found["folder"]) == (name, "PASS", str(out / folder))
        assert found["latencies"] == "costed by the data sheet"
        manifest = json.loads((out / folder / "lissom.json").read_text())
        assert manifest["report"]["target"] == name
        assert "was costed by the data sheet, not measured" in Path(found["report"]).read_text(encoding="utf-8")
        assert "report.html" in manifest["files"]
    cut = run("recut", out / "tpu-v5e", "--original", module, "--size", "3kB", "--out", tmp_path / "cut")
    assert (cut.code, cut.error) == (0, "")
    assert "bytes of weights" in cut.out


def test_what_was_costed_is_said_in_the_table(
    run: Run, module: Path, arrays: Path, tmp_path: Path, alone: None
) -> None:
    out = tmp_path / "out"
    common = ("optimize", module, "--data", arrays, "--max-drop", "2%", "--prefer", "size", "--out", out)
    done = run(*common, "--target", "tpu:v5e")
    assert (done.code, done.error) == (0, "")
    assert "tpu:v5e is not here: times are costed by the data sheet, not measured" in done.out
    assert "ms, costed" in done.out
    assert "shared 4 bits: not on tpu:v5e, palette would become 8 bits in groups of 32" in done.out
    assert (out / "lissom.json").is_file()
    wrong = run(*common[:-1], tmp_path / "other", "--target", "cpu,tpu")
    assert (wrong.code, wrong.error.count("\n")) == (2, 1)
    assert "name the device to cost it for: tpu:v5e" in wrong.error
