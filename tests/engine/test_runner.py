"""The paged forward pass against transformers' own, for each family, with prompts in chunks and lengths mixed."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lissom.engine.pages import Pages
from lissom.engine.runner import FAMILIES, Runner
from lissom.engine.schedule import Schedule
from lissom.engine.sequence import Choice, Sampling, Sequence
from lissom.engine.text import Detokenizer
from lissom.errors import ModelError

SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
}
BENT = {"attn_logit_softcapping": 1.0, "final_logit_softcapping": 2.0, "query_pre_attn_scalar": 10}
PARTIAL = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
WINDOWS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 7},
    "qwen2": {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
    "qwen3": {},
    "gemma2": {"sliding_window": 7, **BENT},
    "gemma3_text": {"sliding_window": 7, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "phi3": {"sliding_window": 7, "rope_parameters": PARTIAL, "pad_token_id": 0},
    "qwen3_moe": {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "norm_topk_prob": True},
    "smollm3": {"no_rope_layer_interval": 2, "use_sliding_window": True, "sliding_window": 7, "pad_token_id": 0},
}


def random_model(family: str) -> Any:
    config = AutoConfig.for_model(family, **SMALL, **WINDOWS[family])
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter) * 0.3 + (parameter.dim() == 1)
    return model


def sequence(tokens: list[int]) -> Sequence:
    return Sequence(
        prompt=tuple(tokens),
        sampling=Sampling(),
        limit=100,
        detokenizer=Detokenizer(lambda _: ""),
        random=np.random.default_rng(0),
    )


@torch.no_grad()
def difference(model: Any, lengths: list[int], vocabulary: int, steps: int, **how: Any) -> float:
    """The largest difference of any logit, while the sequences are read in chunks and then decode."""
    runner, schedule = Runner(model, pages=40, **how), Schedule(Pages(40), max_batch=8, chunk=9)
    draw = torch.Generator().manual_seed(1)
    for length in lengths:
        schedule.add(sequence(torch.randint(vocabulary, (length,), generator=draw).tolist()))
    worst = 0.0
    for _ in range(steps):
        slices = schedule.plan()
        logits = torch.from_numpy(runner.forward(slices))
        complete = [piece for piece in slices if piece.completes]
        for piece in slices:
            piece.sequence.cached += piece.count
        for piece, row in zip(complete, logits, strict=True):
            every = torch.tensor([piece.sequence.tokens(0, piece.sequence.length)])
            worst = max(worst, (model(every).logits[0, -1] - row).abs().max().item())
            piece.sequence.accept(Choice(token=int(row.argmax()), logprob=0.0), end=())
    assert all(one.generated for one in schedule.running)
    return worst


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_those_of_transformers(family: str) -> None:
    assert difference(random_model(family), [1, 20, 5, 33], SMALL["vocab_size"], steps=14) < 1e-4


def test_logits_of_the_bundled_model_equal_those_of_transformers(model: Any) -> None:
    assert difference(model, [3, 60, 17], 2048, steps=20) < 1e-4


def test_the_model_is_left_as_it_was(model: Any) -> None:
    before = model.config._attn_implementation
    difference(model, [3], 2048, steps=2)
    assert model.config._attn_implementation == before


def test_an_unknown_family_is_refused_by_name() -> None:
    config = AutoConfig.for_model("gpt2", n_layer=1, n_head=2, n_embd=8, vocab_size=11)
    with pytest.raises(ModelError, match="'gpt2'; possible are llama, mistral, qwen2, qwen3"):
        Runner(AutoModelForCausalLM.from_config(config), pages=4)


LONG = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "partial_rotary_factor": 1.0, "rope_theta": 10000.0}
SHIFTING = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}


@pytest.mark.parametrize(
    ("family", "told", "message"),
    [
        ("llama", {"rope_parameters": SHIFTING}, "dynamic"),
        ("gemma3_text", {"rope_parameters": {"full_attention": SHIFTING}}, "dynamic"),
        ("phi3", {"rope_parameters": {"rope_type": "longrope", **LONG}, "pad_token_id": 0}, "longrope"),
        ("gemma2", {"use_bidirectional_attention": True}, "attend to later ones"),
    ],
)
def test_what_depends_on_the_batch_or_on_what_comes_is_refused(family: str, told: Any, message: str) -> None:
    config = AutoConfig.for_model(family, **{**SMALL, "head_dim": 8}, **told)
    with pytest.raises(ModelError, match=message):
        Runner(AutoModelForCausalLM.from_config(config), pages=4)
