"""The stream of a language model turned: it says what it said, and everything that reads or writes it is different."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import lissom
from lissom.artifact import open_folder
from lissom.compress import turn as turn_file
from lissom.coupling import Coupling
from lissom.engine import Engine, Sampling
from lissom.errors import RecipeError
from lissom.models import FAMILIES
from lissom.models.apart import apart
from lissom.techniques import STREAM
from lissom.techniques.quantize.rotate import rotate, rotation

FREE = [name for name, family in FAMILIES.items() if not family.behind]
TURN = {"technique": "rotate_stream"}


def logits(model: nn.Module, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids).logits  # type: ignore[no-any-return]


def far(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FREE)
def test_a_turned_model_says_the_same(family: str, tied: bool, tiny: Callable[..., Path]) -> None:
    model: Any = apart(AutoModelForCausalLM.from_pretrained(tiny(family, tied), dtype=torch.float32))
    ids = torch.randint(2048, (4, 16))
    before = {name: p.clone() for name, p in model.named_parameters()}
    turned = lissom.compress_model(model, steps=[TURN])
    assert far(logits(turned, ids), logits(model, ids)) < 1e-5
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert model.config.tie_word_embeddings is tied
    assert turned.config.tie_word_embeddings is False
    assert turned.lm_head.weight is not turned.model.embed_tokens.weight
    own = ("q_norm.weight", "k_norm.weight", "q_proj.bias", "k_proj.bias", "v_proj.bias")
    for name, p in turned.named_parameters():
        if not name.endswith(own):
            assert not torch.allclose(p, before.get(name, before["model.embed_tokens.weight"]), atol=1e-2), name
        if name.endswith("layernorm.weight"):
            assert (p == 1).all()


def test_every_state_of_the_stream_is_turned_by_the_same_matrix(tiny: Callable[..., Path]) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(tiny("llama"), dtype=torch.float32)
    ids, q = torch.randint(2048, (4, 16)), rotation(32, 3)
    turned: Any = lissom.compress_model(model, steps=[{**TURN, "seed": 3}])
    with torch.no_grad():
        states = [m.model(ids, output_hidden_states=True).hidden_states[:-1] for m in (model, turned)]
    for before, after in zip(*states, strict=True):
        torch.testing.assert_close(after, before @ q, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("tied", [False, True])
def test_a_checkpoint_is_turned_and_what_follows_streamed(
    tied: bool, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    source, ids = tiny("qwen3", tied), torch.randint(2048, (4, 16))
    out = lissom.compress_checkpoint(source, lissom.Recipe.of([TURN]), ids[:0], tmp_path / "turned")
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False
    opened = open_folder(out)
    assert far(logits(opened.model, ids), logits(open_folder(source).model, ids)) < 1e-4
    steps = [TURN, {"technique": "rotate"}, {"layers": "*layers*", "technique": "rtn"}]
    steps += [{"layers": "lm_head", "technique": "rtn", "bits": 6}]
    streamed = open_folder(lissom.compress_checkpoint(source, lissom.Recipe.of(steps), ids, tmp_path / "rounded"))
    assert far(logits(streamed.model, ids), logits(opened.model, ids)) < 0.1
    assert streamed.model.get_submodule("lm_head").weight.bits == 6
    engine = Engine(streamed.model, streamed.tokenizer, max_tokens_in_cache=64)
    prompt = ids[0, :6].tolist()
    served = engine.generate([prompt], Sampling(temperature=0, max_tokens=3, ignore_eos=True))[0].generated
    assert served[0] == int(logits(streamed.model, torch.tensor([prompt]))[0, -1].argmax())


def test_it_may_come_after_other_steps_and_is_then_taken_in_memory(tiny: Callable[..., Path], tmp_path: Path) -> None:
    source, ids = tiny("llama", True), torch.randint(2048, (4, 16))
    steps = [{"technique": "smooth"}, TURN, {"technique": "hadamard", "layers": "*down_proj"}]
    out = lissom.compress_checkpoint(source, lissom.Recipe.of(steps), ids, tmp_path / "out")
    assert far(logits(open_folder(out).model, ids), logits(open_folder(source).model, ids)) < 1e-4


def test_a_turned_model_is_saved_and_loaded(tiny: Callable[..., Path], tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny("llama", True), dtype=torch.float32)
    ids = torch.randint(2048, (4, 16))
    turned = lissom.compress_model(model, steps=[TURN, {"layers": "*layers*", "technique": "rtn"}])
    folder = lissom.save(turned, tmp_path / "saved")
    again = lissom.load(folder, model=AutoModelForCausalLM.from_config(turned.config))
    assert torch.equal(logits(again, ids), logits(turned, ids))


def test_a_correction_corrects_the_turned_weight(tiny: Callable[..., Path]) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny("llama"), dtype=torch.float32)
    ids, layers = torch.randint(2048, (4, 16)), {"layers": "model.layers.*"}
    steps = [TURN, {"technique": "rtn", "bits": 3, "group": 32, **layers}]
    corrected = [*steps, {"technique": "residual", "rank": 16, "bits": 16, **layers}]
    wanted = logits(model, ids)
    errors = [far(logits(lissom.compress_model(model, ids, steps=s), ids), wanted) for s in (corrected, steps)]
    assert errors[0] < 0.5 * errors[1]


def whole(c: Coupling) -> Coupling:
    return replace(c, unit=c.channels, rotates=True)


MUTANTS: dict[str, Callable[[Coupling], Coupling]] = {
    "readers only": lambda c: replace(rotate(whole(c)), makers=c.makers),
    "makers only": lambda c: replace(rotate(whole(c)), readers=c.readers),
    "the last maker left out": lambda c: replace(
        rotate(whole(c)), makers=(*rotate(whole(c)).makers[:-1], c.makers[-1])
    ),
    "the head by another matrix": lambda c: replace(
        rotate(whole(c)), readers=(*rotate(whole(c)).readers[:-1], rotate(whole(c), seed=1).readers[-1])
    ),
    "makers the other way": lambda c: replace(
        rotate(whole(c)), makers=tuple(rotation(c.channels, 0) @ m for m in c.makers)
    ),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_what_the_model_says_catches(mutant: str, tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = AutoModelForCausalLM.from_pretrained(tiny("llama")), torch.randint(2048, (4, 16))
    monkeypatch.setitem(STREAM, "rotate_stream", MUTANTS[mutant])
    assert far(logits(lissom.compress_model(model, steps=[TURN]), ids), logits(model, ids)) > 1e-2


def test_norms_that_are_not_folded_are_caught(tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = AutoModelForCausalLM.from_pretrained(tiny("llama")), torch.randint(2048, (4, 16))

    def kept(model: nn.Module, joint: Any) -> Any:
        norms = {r.norm for r in joint.readers}
        return replace(joint, makers=tuple(axis for axis in joint.makers if axis.tensor not in norms))

    monkeypatch.setattr(turn_file, "folded", kept)
    assert far(logits(lissom.compress_model(model, steps=[TURN]), ids), logits(model, ids)) > 1e-2


def test_channels_that_are_no_stream_are_left_alone() -> None:
    c = Coupling(channels=4, makers=(torch.randn(4, 3),), readers=())
    assert STREAM["rotate_stream"](c) is c


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - FREE))
def test_norms_behind_what_is_written_leave_only_the_order(family: str, tiny: Callable[..., Path]) -> None:
    model, ids = AutoModelForCausalLM.from_pretrained(tiny(family)), torch.randint(2048, (4, 16))
    for technique in ("rotate_stream", "width"):
        message = f"{technique}: norms stand behind what this model writes .* only change places"
        with pytest.raises(RecipeError, match=message):
            lissom.compress_model(model, ids, steps=[{"technique": technique}])


def test_mistakes_say_what_to_do(tiny: Callable[..., Path], tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny("llama"))
    for steps, message in (
        ([{**TURN, "layers": "*q_proj"}], "rotate_stream acts on the whole model; leave out layers='\\*q_proj'"),
        ([{"technique": "rtn", "layers": "*q_proj"}, TURN], "rotate_stream: a layer is compressed already; put this"),
    ):
        with pytest.raises(RecipeError, match=message):
            lissom.compress_model(model, steps=steps)
    with pytest.raises(RecipeError, match="Sequential is none of the language models whose stream is known: llama"):
        lissom.compress_model(nn.Sequential(nn.Linear(4, 4)), steps=[TURN])
    with pytest.raises(RecipeError, match="rotate_stream needs the whole model in memory; leave out max_ram"):
        lissom.compress_checkpoint(
            tiny("llama"), lissom.Recipe.of([TURN]), torch.empty(0, 8, dtype=torch.long), tmp_path / "o", max_ram=10**10
        )
