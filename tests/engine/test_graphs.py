"""Passes of one token for each sequence: filled up, told anew and played again, they say what unrecorded ones say."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, AutoModelForCausalLM

from lissom.engine import Engine, Sampling
from lissom.engine.graphs import Play, Steps, pages_of, recording, sequences_of
from lissom.engine.runner import FAMILIES, Runner
from tests.engine.test_runner import SMALL, WINDOWS, difference, random_model


class Recorder:
    """Records by running once before, as a GPU does, and counts."""

    def __init__(self) -> None:
        self.recorded = self.played = 0

    def __call__(self, run: Play) -> Play:
        run()
        self.recorded += 1

        def play() -> Tensor:
            self.played += 1
            return run()

        return play


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_played_again_says_what_transformers_says(family: str) -> None:
    record = Recorder()
    assert difference(random_model(family), [1, 20, 5, 33], SMALL["vocab_size"], steps=14, record=record) < 1e-4
    assert 0 < record.recorded < record.played


def test_texts_are_the_same_whether_passes_are_recorded(model: Any, tokenizer: Any) -> None:
    prompts = [tokenizer(text).input_ids for text in ("Once upon a time", "The dog", "A")]
    said = []
    for record in (None, Recorder()):
        engine = Engine(model, tokenizer, max_tokens_in_cache=512)
        engine._runner = Runner(model, pages=32, record=record)
        said.append([one.generated for one in engine.generate(prompts, Sampling(max_tokens=12, seed=3))])
    assert said[0] == said[1]
    assert record is not None
    assert record.played > record.recorded > 0


def test_sequences_that_fill_up_touch_nobodys_pages() -> None:
    seen: list[Tensor] = []

    def run(told: Tensor) -> Tensor:
        seen.append(told.clone())
        return told[:, :1].float()

    steps = Steps(run, spare=77, place=torch.device("cpu"), record=lambda run: run)
    for tokens in ([5, 6, 7], [8, 9, 10]):
        assert steps.logits(tokens, [0, 17, 3], [[1], [2, 3], [4]]).flatten().tolist() == tokens
        told = seen[-1]
        assert told.shape == (4, 2 + 8)
        assert told[:3, :2].tolist() == [[token, place] for token, place in zip(tokens, [0, 17, 3], strict=True)]
        assert told[1, 2:].tolist() == [2, 3] + [77] * 6
        assert told[3].tolist() == [0, 0] + [77] * 8


def test_sizes_are_few_and_large_enough() -> None:
    for count in range(1, 600):
        assert count <= sequences_of(count) < 2 * count
        assert max(count, 8) <= pages_of(count) <= max(1.5 * count, 8)
    assert len({pages_of(count) for count in range(1, 600)}) < 15


STEADY = [family for family in FAMILIES if "moe" not in family]


@pytest.mark.parametrize("family", STEADY)
def test_a_pass_reads_no_number_back(family: str) -> None:
    """Fake tensors have no numbers: what would wait for a GPU to read one, or depend on one, cannot be run on them."""
    with FakeTensorMode():
        config = AutoConfig.for_model(family, **SMALL, **WINDOWS[family])
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        runner, told = Runner(model, pages=4), torch.zeros(2, 2 + 8, dtype=torch.long)
        assert runner._step(told).shape == (2, SMALL["vocab_size"])


def test_only_on_a_gpu_and_without_experts_is_anything_recorded(model: Any) -> None:
    assert recording(model) is None
    experts = SimpleNamespace(device=torch.device("cuda"), dtype=torch.bfloat16, generation_config=None)
    experts.config = SimpleNamespace(num_experts=3)
    assert recording(experts) is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use")
@pytest.mark.parametrize("family", STEADY)
def test_on_a_gpu_a_graph_says_what_transformers_says(family: str) -> None:
    model = random_model(family).cuda()
    runner = Runner(model, pages=40, record=recording(model))
    told = [([3, 5], [0, 0], [[1], [2]]), ([7, 11], [1, 1], [[1], [2]]), ([9, 2], [2, 2], [[1], [2]])]
    assert runner._steps is not None
    with torch.no_grad():
        for number, given in enumerate(told):
            logits = runner._steps.logits(*given).clone()
            every = torch.tensor([[step[0][row] for step in told[: number + 1]] for row in range(2)]).cuda()
            torch.testing.assert_close(logits, model(every).logits[:, -1].float(), rtol=1e-3, atol=1e-3)
