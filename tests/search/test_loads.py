"""Loads: what layers are given, against counting by hand."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from lissom.models import Checkpoint
from lissom.search.loads import Use, loads_of_answer, loads_of_module


class Twice(nn.Module):
    """Looks up, convolves, and multiplies with one matrix twice."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.conv, self.same = nn.Embedding(10, 4), nn.Conv1d(4, 6, 3), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        maps: Tensor = self.conv(self.table(x).transpose(1, 2)).transpose(1, 2)
        once: Tensor = self.same(self.same(maps).mean(1))
        return once


def test_a_module_is_looked_at_as_it_runs() -> None:
    found = loads_of_module(Twice(), torch.zeros(5, 8, dtype=torch.long))
    assert found == {
        "table": {"call": [Use(rows=40, looks_up=True)]},
        "conv": {"call": [Use(rows=30)]},
        "same": {"call": [Use(rows=30), Use(rows=5)]},
    }


def test_an_answer_reads_a_prompt_and_writes_tokens(tiny: Callable[..., Path]) -> None:
    checkpoint = Checkpoint(tiny("llama", True))
    layer = "model.layers.1.mlp.up_proj"
    found = loads_of_answer(checkpoint, [checkpoint.family.embedding, layer], 12, 5)
    assert found[layer] == {"prefill": [Use(rows=12)], "decode": [Use(rows=1, calls=5)]}
    assert found[checkpoint.family.embedding] == {  # which is the head too
        "prefill": [Use(rows=12, looks_up=True), Use(rows=1)],
        "decode": [Use(rows=1, calls=5, looks_up=True), Use(rows=1, calls=5)],
    }
    apart = loads_of_answer(Checkpoint(tiny("llama")), ["model.embed_tokens", "lm_head"], 12, 5)
    assert apart["lm_head"] == {"prefill": [Use(rows=1)], "decode": [Use(rows=1, calls=5)]}
    assert apart["model.embed_tokens"]["decode"] == [Use(rows=1, calls=5, looks_up=True)]


def test_an_expert_is_given_as_many_as_choose_it(tiny: Callable[..., Path]) -> None:
    """Two of three, so that of a prompt of two it is not met once in nine times."""
    layer = "model.layers.0.mlp.experts.1.up_proj"
    found = loads_of_answer(Checkpoint(tiny("qwen3_moe")), [layer, "model.layers.1.mlp.up_proj"], 2, 9)
    (prefill,), (decode,) = found[layer]["prefill"], found[layer]["decode"]
    assert abs(prefill.calls - 8 / 9) < 1e-9
    assert abs(prefill.calls * prefill.rows - 4 / 3) < 1e-9
    assert decode == Use(rows=1, calls=6)
    assert found["model.layers.1.mlp.up_proj"]["prefill"] == [Use(rows=2)]
