"""A checkpoint block by block, against the whole model in memory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from lissom.calibrate.stream import Stream
from lissom.models import FAMILIES, Checkpoint
from lissom.models.apart import apart
from lissom.models.families import at

Tiny = Callable[..., Path]
WINDOWS = torch.randint(2048, (5, 12), generator=torch.Generator().manual_seed(2))


def spoil(part: nn.Module) -> None:
    """Change a part as a compression would, the same way each time."""
    with torch.no_grad():
        for parameter in part.parameters():
            if parameter.dim() == 2:
                parameter.mul_(parameter.abs() > 0.05)


def flow(stream: Stream) -> list[Tensor]:
    """The hidden states after the embedding and after each block, every part spoiled before the data flows on."""
    embedding = stream.embedding()
    spoil(embedding)
    stream.start(embedding)
    seen = []
    for _, block in stream.blocks():
        seen.append(stream.hidden)
        spoil(block)
    seen.append(stream.hidden)
    stream.finish()
    return [*seen, stream.hidden]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_each_block_sees_what_the_changed_ones_before_it_say(tiny: Tiny, family: str, tied: bool) -> None:
    whole: Any = apart(AutoModelForCausalLM.from_pretrained(tiny(family, tied))).eval()
    spoil(whole.model)
    kept: list[Tensor] = []
    for block in whole.model.layers:
        block.register_forward_pre_hook(lambda block, arguments: kept.append(arguments[0]))
    whole.model.norm.register_forward_pre_hook(lambda norm, arguments: kept.append(arguments[0]))
    with torch.no_grad():
        last = whole.model(WINDOWS).last_hidden_state
    streamed = flow(Stream(Checkpoint(tiny(family, tied)), WINDOWS, batch=2))
    assert len(streamed) == 4
    for ours, theirs in zip(streamed, [*kept, last], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert not torch.equal(streamed[0], streamed[1])


def test_looking_at_a_block_does_not_move_the_data(tiny: Tiny) -> None:
    stream = Stream(Checkpoint(tiny("llama")), WINDOWS, batch=2)
    stream.start(stream.embedding())
    for name, block in stream.blocks():
        before = stream.hidden
        inputs: list[Tensor] = []
        handle = block.register_forward_pre_hook(lambda block, arguments, inputs=inputs: inputs.append(arguments[0]))
        stream.see(name, block)
        handle.remove()
        assert stream.hidden is before
        assert torch.equal(torch.cat(inputs), before)


@pytest.mark.parametrize("own", ["mlp.gate_proj", "self_attn.o_proj", "mlp.down_proj"])
def test_what_comes_after_the_last_watched_layer_is_run_once_only(tiny: Tiny, own: str) -> None:
    stream = Stream(Checkpoint(tiny("llama")), WINDOWS, batch=2)
    stream.start(stream.embedding())
    name, block = next(stream.blocks())
    watched, after = at(block, own), at(block, "mlp.down_proj")
    seen: list[Tensor] = []
    runs: list[nn.Module] = []
    watched.register_forward_pre_hook(lambda layer, given: seen.append(given[0]))
    after.register_forward_hook(lambda layer, given, out: runs.append(layer))
    stream.see(name, block, [watched])
    assert len(runs) == 1
    assert len(torch.cat(seen)) == len(WINDOWS)
    parts, seen[:] = torch.cat(seen), []
    stream.see(name, block)
    assert torch.equal(torch.cat(seen), parts)
    assert len(runs) == 4


def test_the_data_goes_on_by_the_first_look_unless_it_follows_what_becomes_of_a_block(tiny: Tiny) -> None:
    original, changed, plain = (Stream(Checkpoint(tiny("llama")), WINDOWS, batch=2) for _ in range(3))
    original.follow = False
    states: list[list[Tensor]] = [[], [], []]
    runs: list[nn.Module] = []
    for stream, seen in zip((original, changed, plain), states, strict=True):
        stream.start(stream.embedding())
        for name, block in stream.blocks():
            at(block, "mlp.down_proj").register_forward_hook(lambda layer, given, out: runs.append(layer))
            if stream is not plain:
                stream.see(name, block)
                spoil(block)
                stream.see(name, block, [at(block, "self_attn.q_proj")])
            seen.append(stream.hidden)
        seen.append(stream.hidden)
    assert all(torch.equal(one, other) for one, other in zip(states[0], states[2], strict=True))
    assert torch.equal(states[0][0], states[1][0])
    assert not any(torch.equal(one, other) for one, other in zip(states[0][1:], states[1][1:], strict=True))
    lots, blocks = 3, 2
    assert len(runs) == blocks * (lots + 1) + blocks * (2 * lots + 1) + blocks * lots


def test_the_data_stays_before_the_last_block_where_nothing_after_it_is_wanted(tiny: Tiny) -> None:
    flown, stayed = (Stream(Checkpoint(tiny("llama")), WINDOWS) for _ in range(2))
    stayed.onward = False
    inputs = []
    for stream in (flown, stayed):
        stream.start(stream.embedding())
        inputs.append([stream.hidden for _ in stream.blocks()])
        stream.finish()
    assert all(torch.equal(one, other) for one, other in zip(*inputs, strict=True))
    assert torch.equal(stayed.hidden, inputs[1][-1])
    assert not torch.equal(flown.hidden, stayed.hidden)


def test_bfloat16_flows_as_float32_does_to_its_own_precision(tiny: Tiny) -> None:
    plain, narrow = (
        Stream(Checkpoint(tiny("qwen3")), WINDOWS, floats=kind) for kind in (torch.float32, torch.bfloat16)
    )
    one, other = flow(plain), flow(narrow)
    assert {hidden.dtype for hidden in other} == {torch.bfloat16}
    for a, b in zip(one, other, strict=True):
        assert float((a - b.float()).norm() / a.norm()) < 0.02


def test_one_block_is_resident_at_a_time(tiny: Tiny) -> None:
    stream = Stream(Checkpoint(tiny("llama")), WINDOWS)
    stream.start(stream.embedding())
    for name, _ in stream.blocks():
        there = {
            number
            for number, block in enumerate(at(stream.model, "model.layers").children())
            if any(parameter.device.type != "meta" for parameter in block.parameters())
        }
        assert there == {int(name.rpartition(".")[2])}


def test_without_data_the_parts_are_handed_out_all_the_same(tiny: Tiny) -> None:
    streamed = flow(Stream(Checkpoint(tiny("qwen2")), torch.empty(0, 12, dtype=torch.long)))
    assert [len(hidden) for hidden in streamed] == [0, 0, 0, 0]


def test_a_tied_head_is_not_handed_out_twice(tiny: Tiny) -> None:
    assert Stream(Checkpoint(tiny("llama", True)), WINDOWS).head() is None
    head = Stream(Checkpoint(tiny("llama")), WINDOWS).head()
    assert isinstance(head, nn.Linear)
    assert torch.equal(head.weight, Checkpoint(tiny("llama")).tensor("lm_head.weight"))
