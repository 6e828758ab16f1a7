"""What the engine's benchmark counts, and that it times what it says."""

from typing import Any

import pytest
from torch import nn

from lissom.compress import compress_model
from lissom.engine import Engine
from lissom.engine.bench import bench_engine, engine, step_bytes, weights
from lissom.engine.lower import lower
from lissom.engine.turn import once
from lissom.errors import DataError
from lissom.formats import freeze
from lissom.hardware import Limits, limits


@pytest.fixture(scope="module")
def machine() -> Limits:
    return limits(0.01, size=64, read_bytes=2**20)


def test_rates_and_their_part_of_the_limit(model: Any, tokenizer: Any, machine: Limits) -> None:
    one, three = bench_engine(model, tokenizer, machine, batches=(1, 3), prompt=20, new=4, rounds=2)
    assert (one.sequences, three.sequences) == (1, 3)
    for found in (one, three):
        assert found.prefill_tokens_per_s.low > 0
        a_second = found.decode_tokens_per_s.value / found.sequences * step_bytes(model)
        assert found.decode_of_limit.value == pytest.approx(a_second / 1e9 / machine.read_all.value)
        done = 2 * weights(model) * found.prefill_tokens_per_s.value
        assert found.prefill_of_limit.value == pytest.approx(done / 1e9 / machine.int8.value)


def test_a_round_reads_every_prompt_and_writes_so_many_tokens(model: Any, tokenizer: Any) -> None:
    running = engine(model, tokenizer, 3, 20, 4)
    seen: list[int] = []
    step = Engine.step

    def counted() -> Any:
        changed = step(running)
        seen.append(len(changed))
        return changed

    running.step = counted  # type: ignore[method-assign]
    read, write = once(running, 3, 20, 4)
    assert read > 0
    assert write > 0
    assert seen == [3] * (1 + 4)  # all at once, to the end
    assert not running.busy


def test_what_a_step_reads_is_every_matrix_once(model: Any) -> None:
    config = model.config
    head = config.vocab_size * config.hidden_size
    blocks = sum(layer.weight.numel() for layer in model.model.layers.modules() if isinstance(layer, nn.Linear))
    assert weights(model) == blocks
    assert step_bytes(model) == 4 * (blocks + head)


def test_lowered_layers_count_by_their_own_bytes() -> None:
    made: Any = compress_model(nn.Sequential(nn.Linear(64, 32)), steps=[{"technique": "rtn", "bits": 4, "group": 32}])
    lowered = lower(freeze(made))
    assert weights(lowered) == 64 * 32
    assert 64 * 32 / 2 < step_bytes(lowered) < 64 * 32


@pytest.mark.parametrize("wrong", [{"prompt": 0}, {"new": 0}, {"batches": ()}, {"batches": (1, 0)}])
def test_what_cannot_be_measured_is_refused(model: Any, tokenizer: Any, machine: Limits, wrong: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="at least 1 of each"):
        bench_engine(model, tokenizer, machine, **wrong)
