import pytest
import torch
from torch import nn

from lissom.errors import LissomError
from lissom.hardware import bench_module
from lissom.hardware.bench import Answer


@pytest.fixture(scope="module")
def stories(demo_folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(demo_folder, dtype=torch.float32).eval()


@pytest.mark.parametrize("example", [torch.ones(5, 4), (torch.ones(5, 4), torch.ones(5)), {"input": torch.ones(5, 4)}])
def test_a_module(example):
    speed = bench_module(nn.Linear(4, 3), example, rounds=7)
    assert speed.latency_ms.n == 7
    assert speed.examples_per_s.value == pytest.approx(5000 / speed.latency_ms.value)
    assert speed.examples_per_s.low <= speed.examples_per_s.value <= speed.examples_per_s.high
    assert speed.peak_bytes > 2**20


def test_what_is_timed_is_generation(stories):
    prompt = torch.randint(3, 2048, (1, 12))
    answer = Answer(stories, prompt, 4)
    with torch.inference_mode():
        answer.read()
        answer.write()
        expected = stories.generate(prompt, max_new_tokens=5, min_new_tokens=5, do_sample=False)
    assert answer.said.logits[0, -1].argmax() == expected[0, -1]
    assert answer.said.past_key_values.get_seq_length() == 16


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(LissomError, match="'fpga' is not on this machine"):
        bench_module(nn.Linear(1, 1), torch.ones(1, 1), target="fpga")
