"""The verbs that tell what could be done."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from lissom.techniques import TECHNIQUES
from lissom.types import Recipe

Run = Callable[..., Any]
Tiny = Callable[..., Path]


def test_techniques_are_listed_for_people_and_for_programs(run: Run) -> None:
    told = run("techniques")
    assert told.code == 0
    for name in TECHNIQUES:
        assert name in told.out
    found = json.loads(run("techniques", "--json").out)
    assert [one["name"] for one in found] == list(TECHNIQUES)
    (gptq,) = json.loads(run("techniques", "gptq", "--json").out)
    assert gptq["papers"][0]["arxiv"] == "2210.17323"
    assert gptq["knobs"][0] == {"name": "bits", "types": ["int"], "default": 4}
    wrong = run("techniques", "gtpq")
    assert (wrong.code, wrong.out) == (2, "")
    assert "did you mean 'gptq'" in wrong.error
    assert wrong.error.count("\n") == 1


def test_explain_tells_every_layer(run: Run, tiny: Tiny, recipe: Path) -> None:
    model = tiny("llama", True)
    told = run("explain", recipe, model)
    assert (told.code, told.error) == (0, "")
    assert "panels" in told.out
    assert "x smaller" in told.out
    found = json.loads(run("explain", recipe, model, "--json").out)
    assert len(found["layers"]) == 15
    assert f"{found['bytes_after']:,}" in told.out
    wrong = run("explain", recipe, model / "none")
    assert (wrong.code, wrong.error.count("\n")) == (2, 1)


MODIFIERS = """
quant_stage:  # modifiers of llm-compressor
  quant_modifiers:
    GPTQModifier: {scheme: W4A16, ignore: [lm_head], targets: [Linear], block_size: 64}
"""


def test_a_recipe_of_another_tool_is_told_as_what_it_becomes(run: Run, demo_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "theirs.yaml").write_text(MODIFIERS)
    told = run("explain", tmp_path / "theirs.yaml", demo_folder)
    became = "layers=model.layers.* technique=gptq bits=4 group=128 clip=False; left out: block_size=64"
    assert (told.code, told.error.strip()) == (0, f"quant_stage.quant_modifiers: GPTQModifier -> {became}")
    assert "affine" in told.out
    (tmp_path / "theirs.yaml").write_text(MODIFIERS.replace("GPTQ", "MFACPruning"))
    wrong = run("explain", tmp_path / "theirs.yaml", demo_folder)
    assert (wrong.code, wrong.error.count("\n")) == (2, 1)
    assert "MFACPruningModifier of quant_stage.quant_modifiers has no counterpart" in wrong.error
    (tmp_path / "ours.yaml").write_text("# no modifiers here\nsteps: [{technique: rtn}]\n")
    assert run("explain", tmp_path / "ours.yaml", demo_folder).code == 0


def test_sensitivity_mixes_a_recipe_for_a_size(run: Run, tiny: Tiny, text: Path, tmp_path: Path) -> None:
    model, out = tiny("llama", True), tmp_path / "mixed.yaml"
    common = ("--data", text, "--length", 16, "--windows", 4, "--bits", "2,4", "--group", 16)
    remembered = ("--cache", tmp_path / "cache")
    found = json.loads(run("sensitivity", model, *common, *remembered, "--json").out)
    assert [option["steps"][0]["bits"] for option in found["model.layers.0.mlp.up_proj"]] == [2, 4]
    told = run("sensitivity", model, *common, *remembered, "--size", "80kB", "--out", out)
    assert (told.code, told.error) == (0, "")
    mixed = Recipe.of(yaml.safe_load(out.read_text()))
    assert len(mixed.steps) == 15
    explained = json.loads(run("explain", out, model, "--json").out)
    assert 0.6 * 80_000 < explained["bytes_after"] <= 80_000


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--size", "4MB"), "--size and --out belong together"),
        (("--size", "much", "--out", "new.yaml"), "--size 'much' is no size; write 4GB"),
        (("--bits", "four"), "--bits 'four' is no list of numbers"),
        (("--size", "1kB", "--out", "new.yaml", "--group", "16"), "bytes are too few"),
    ],
)
def test_a_mistake_is_one_line(
    run: Run,
    tiny: Tiny,
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    told = run("sensitivity", tiny("llama", True), "--data", text, "--length", 16, "--windows", 2, *words)
    assert told.code == 2
    assert message in told.error
    assert told.error.count("\n") == 1
    assert not (tmp_path / "new.yaml").exists()


@pytest.mark.parametrize(
    ("text_of", "nbytes"),
    [("4GB", 4 * 10**9), ("512 MiB", 512 * 2**20), ("1.5k", 1500), ("77", 77), ("77B", 77)],
)
def test_sizes_are_read(text_of: str, nbytes: int) -> None:
    from lissom.cli.read import size

    assert size("max-ram", text_of) == nbytes


def test_a_bound_on_memory_is_kept_or_refused(run: Run, tiny: Tiny, recipe: Path, tmp_path: Path) -> None:
    told = run("compress", tiny("llama", True), "--recipe", recipe, "--out", tmp_path / "out", "--max-ram", "50MB")
    assert told.code == 2
    assert "are too few" in told.error
    told = run("compress", tiny("llama", True), "--recipe", recipe, "--out", tmp_path / "out", "--max-ram", "64GB")
    assert (told.code, told.error) == (0, "")


def test_a_cache_that_there_is_not_is_refused_before_the_model_is_read(run: Run, tmp_path: Path) -> None:
    told = run("serve", tmp_path, "--kv-cache", "int3")
    assert (told.code, told.error.count("\n")) == (2, 1)
    assert "choose auto, float, bfloat16, int8, int4" in told.error


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--speculate", "always"), "'always' is not possible; choose auto or off"),
        (("--speculate", "off", "--draft", "small"), "leave one of them out"),
    ],
)
def test_ways_to_guess_that_cannot_be_are_refused_before_the_model_is_read(
    run: Run, tmp_path: Path, words: tuple[str, ...], reason: str
) -> None:
    told = run("serve", tmp_path, *words)
    assert (told.code, told.error.count("\n")) == (2, 1)
    assert reason in told.error


def test_a_plan_names_the_best_split_and_its_bottleneck(run: Run, demo_folder: Path) -> None:
    common = ("--devices", 64, "--device", "h200", "--link", "50GB/s", "--node", 8, "--batch", 64)
    told = run("plan", demo_folder, *common, "--top", 3)
    assert (told.code, told.error) == (0, "")
    assert "best: " in told.out
    assert "its bottleneck is" in told.out
    assert "assumed: products get 40%" in told.out
    found = json.loads(run("plan", demo_folder, *common, "--json").lines[-1])
    assert found["event"] == "result"
    assert len(found["splits"]) == 10
    assert found["model"]["weights"] == 4 * 786_432 + 2048 * 256
    serves = run("plan", demo_folder, *common, "--for", "serve", "--bits", 4, "--efficiency", 0.3)
    assert "prompts" in serves.out
    assert "products get 30%" in serves.out
    for words, reason in (((demo_folder, "--link", 50), "with its unit"), ((demo_folder / "none",), "is no folder")):
        wrong = run("plan", *words, *common[:4], "--node", 8)
        assert (wrong.code, wrong.error.count("\n")) == (2, 1)
        assert reason in wrong.error


def test_a_plan_for_this_machine_is_timed(run: Run, demo_folder: Path) -> None:
    words = ("--devices", 2, "--batch", 2, "--length", 16, "--seconds", 0, "--json")
    told = run("plan", demo_folder, *words)
    assert (told.code, told.error) == (0, "")
    found = json.loads(told.lines[-1])
    assert {"data": 2, "shard": 1, "tensor": 1, "pipeline": 1, "parts": 1} in [one["split"] for one in found["splits"]]
    assert found["rests_on"][0].startswith("measured: ")
    assert all(one["seconds"] > 0 for one in found["splits"])
