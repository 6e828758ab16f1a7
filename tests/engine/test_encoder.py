"""Text encoders in C against the same blocks in PyTorch: kernels, families, formats, masks, and what falls back."""

import copy
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from lissom.compress import compress_model
from lissom.engine.encoder import FAMILIES, ROWS, NativeEncoder, cut, native_encoder
from lissom.engine.kernels import native
from lissom.engine.lower import lower
from lissom.errors import DataError
from lissom.formats import freeze

pytestmark = pytest.mark.skipif(not native.kernels(), reason="the kernels in C were not built: there was no compiler")

SMALL = {
    "hidden_size": 48,
    "num_attention_heads": 3,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "vocab_size": 90,
    "max_position_embeddings": 400,
}
LAYERS = ("query", "key", "value", "dense")
LENGTHS = (1, 17, 40, 64, 65, 130)


def random(family: str = "bert", **options: Any) -> Any:
    """A model whose every weight matters."""
    torch.manual_seed(5)
    model = AutoModel.from_config(AutoConfig.for_model(family, **{**SMALL, **options})).eval()
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter) * 0.15 + (parameter.dim() == 1)
    return model


def batch(lengths: tuple[int, ...] = LENGTHS) -> tuple[Tensor, Tensor]:
    """Tokens, filled up, and their mask."""
    draw = torch.Generator().manual_seed(1)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)
    return torch.randint(3, SMALL["vocab_size"], mask.shape, generator=draw), mask.long()


def compressed(*steps: dict[str, Any], **options: Any) -> Any:
    steps = tuple({"layers": f"*{name}", **step} for step in steps for name in LAYERS)
    return freeze(compress_model(random(**options), steps=list(steps))).eval()


def lowered(*steps: dict[str, Any], **options: Any) -> Any:
    """A model on the kernels that is a program."""
    model: Any = lower(compressed(*steps, **options))
    assert isinstance(model, NativeEncoder)
    return model


def in_pytorch(model: Any) -> Any:
    """The same layers, one after the other in PyTorch."""
    return copy.deepcopy(model).model


def hidden(model: Any, ids: Tensor, mask: Tensor | None) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(ids, attention_mask=mask).last_hidden_state
    return found


def distance(found: Tensor, wanted: Tensor, mask: Tensor) -> float:
    real = mask.bool()
    return float((found - wanted)[real].norm() / wanted[real].norm())


@pytest.mark.parametrize("kernel", native.kernels())
@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_are_those_of_transformers(family: str, kernel: str) -> None:
    model, (ids, mask) = random(family), batch()
    wanted = hidden(model, ids, mask)
    model = NativeEncoder(model, kernel)
    found = hidden(model, ids, mask)
    assert distance(found, wanted, mask) < (0.01 if kernel == "avx512bf16" else 1e-5)
    assert not found[mask == 0].any()


@pytest.mark.parametrize("size", [6, 33, 48])
@pytest.mark.parametrize("kernel", native.kernels())
def test_heads_may_have_any_number_of_features(size: int, kernel: str) -> None:
    model, (ids, mask) = random(hidden_size=3 * size), batch()
    wanted = hidden(model, ids, mask)
    found = hidden(NativeEncoder(model, kernel), ids, mask)
    assert distance(found, wanted, mask) < (0.01 if kernel == "avx512bf16" else 1e-5)


@pytest.mark.parametrize("lengths", [LENGTHS, (64, 60, 70, 62)], ids=["uneven", "even"])
@pytest.mark.parametrize("kernel", native.kernels())
def test_what_a_sequence_gives_does_not_depend_on_what_runs_beside_it(kernel: str, lengths: tuple[int, ...]) -> None:
    model, (ids, mask) = random(), batch(lengths)
    model = NativeEncoder(model, kernel)
    together = hidden(model, ids, mask)
    for found, tokens, length in zip(together, ids, lengths, strict=True):
        alone = hidden(model, tokens[None, :length], None)
        assert torch.equal(alone[0], found[:length])


@pytest.mark.parametrize(
    "steps",
    [
        [{"technique": "rtn", "bits": 8}],
        [{"technique": "rtn", "bits": 4, "group": 16, "symmetric": False}],
        [{"technique": "ternary"}],
        [{"technique": "rtn", "bits": 8}, {"technique": "dynamic"}],
    ],
    ids=["int8", "int4 in groups", "ternary", "integer inputs"],
)
def test_a_compressed_model_says_what_its_layers_say_in_pytorch(steps: list[dict[str, Any]]) -> None:
    model, (ids, mask) = lowered(*steps), batch()
    assert distance(hidden(model, ids, mask), hidden(in_pytorch(model), ids, mask), mask) < 0.02


INT8 = {"technique": "rtn", "bits": 8}


@pytest.mark.parametrize("how", [INT8, {"technique": "magnitude", "sparsity": 0.5}], ids=["int8", "pruned"])
def test_tables_may_be_compressed(how: dict[str, Any]) -> None:
    steps = [{"layers": f"*{name}", **INT8} for name in LAYERS] + [{"layers": "*embeddings", **how}]
    model: Any = lower(freeze(compress_model(random(), steps=steps)).eval())
    assert isinstance(model, NativeEncoder)
    ids, mask = batch()
    assert distance(hidden(model, ids, mask), hidden(in_pytorch(model), ids, mask), mask) < 0.02


def test_a_model_of_bfloat16_stays_one() -> None:
    model, (ids, mask) = random().bfloat16(), batch()
    found = hidden(NativeEncoder(model), ids, mask)
    assert found.dtype == torch.bfloat16
    assert distance(found, hidden(model, ids, mask), mask) < 0.02


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"input_ids": [[3, 90]]}, "tokens 3 to 90 were given; possible are 0 to 89"),
        ({"input_ids": [[-1, 4]]}, "tokens -1 to 4"),
        ({"input_ids": [[3, 4]], "position_ids": [[0, 400]]}, "positions 0 to 400 were given; possible are 0 to 399"),
        ({"input_ids": [[3, 4]], "token_type_ids": [[0, 2]]}, "types 0 to 2 were given; possible are 0 to 1"),
    ],
    ids=["large", "negative", "position", "type"],
)
def test_rows_that_no_table_has_are_refused(given: dict[str, Any], message: str) -> None:
    model = lowered(INT8)
    with pytest.raises(DataError, match=message):
        model(**{name: torch.tensor(rows) for name, rows in given.items()})


def test_padding_may_be_anywhere_and_everything() -> None:
    model, (ids, mask) = lowered(INT8), batch((20, 20, 20))
    mask[0, :7] = 0
    mask[1, 5:9] = 0
    wanted = hidden(in_pytorch(model), ids, mask)
    assert distance(hidden(model, ids, mask), wanted, mask) < 0.02
    assert not hidden(model, ids, torch.zeros_like(mask)).any()


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_types_and_positions_are_those_that_are_given(family: str) -> None:
    model, (ids, mask) = random(family, type_vocab_size=3), batch((20, 11))
    ids[0, 4] = 1  # the padding of RoBERTa, which it does not count
    types = torch.randint(3, ids.shape, generator=torch.Generator().manual_seed(2))
    own, program = torch.randperm(20).unsqueeze(0), NativeEncoder(model, "portable")
    for given in ({}, {"token_type_ids": types}, {"position_ids": own}, {"token_type_ids": types, "position_ids": own}):
        with torch.no_grad():
            wanted, found = (one(ids, mask, **given).last_hidden_state for one in (model, program))
        assert distance(found, wanted, mask) < 1e-5


def test_it_has_the_attributes_of_the_original_and_is_lowered_once() -> None:
    model = lowered(INT8)
    assert model.config.hidden_size == SMALL["hidden_size"]
    assert lower(model) is model
    with pytest.raises(AttributeError, match="nonsense"):
        _ = model.nonsense
    inside = lower(nn.ModuleDict({"text": compressed(INT8)}))
    assert isinstance(inside["text"], NativeEncoder)


def test_a_sequence_longer_than_a_pass_is_a_pass() -> None:
    model, (ids, mask) = lowered(INT8), batch((5, ROWS + 30))
    assert distance(hidden(model, ids, mask), hidden(in_pytorch(model), ids, mask), mask) < 0.02


def test_the_pooler_reads_what_the_program_made() -> None:
    model, (ids, mask) = lowered(INT8), batch()
    with torch.no_grad():
        found, wanted = (one(ids, attention_mask=mask).pooler_output for one in (model, in_pytorch(model)))
    torch.testing.assert_close(found, wanted, rtol=0.05, atol=0.05)


def test_what_the_program_does_not_know_runs_in_pytorch() -> None:
    model, (ids, mask) = lowered(INT8), batch((30, 30))
    plain = in_pytorch(model)
    causal = torch.ones(30, 30).tril().bool().expand(2, 1, 30, 30)
    assert torch.equal(hidden(model, ids, causal), hidden(plain, ids, causal))
    with torch.no_grad():
        states = model(ids, attention_mask=mask, output_hidden_states=True).hidden_states
        wanted = plain(ids, attention_mask=mask, output_hidden_states=True).hidden_states
    assert len(states) == 3
    assert all(torch.equal(one, other) for one, other in zip(states, wanted, strict=True))
    assert torch.equal(hidden(model.train().eval(), ids, mask), hidden(copy.deepcopy(model).float(), ids, mask))


def test_encoders_that_the_program_does_not_know_stay() -> None:
    whole: Any = lower(random())
    assert not isinstance(whole, NativeEncoder)  # no layer of it is on a kernel
    strange: Any = compressed(INT8, hidden_act="quick_gelu")
    decoder: Any = compressed(INT8, is_decoder=True)
    several: Any = compressed(INT8)
    several.encoder.layer[1].output.dense = nn.Sequential(several.encoder.layer[1].output.dense)
    for model in (strange, decoder, several):
        assert not isinstance(lower(model), NativeEncoder)
    assert native_encoder(random()) is None


def test_threads_do_not_share_a_program() -> None:
    model, (ids, mask) = lowered(INT8), batch()
    wanted = hidden(model, ids, mask)
    with ThreadPoolExecutor(4) as threads:
        for found in threads.map(lambda _: hidden(model, ids, mask), range(16)):
            assert torch.equal(found, wanted)


def test_any_number_of_threads_gives_the_same() -> None:
    before, (ids, mask) = torch.get_num_threads(), batch((100, 150, 250))
    found = []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            model = lowered(INT8)
            found += [hidden(model, ids, mask) for _ in range(5)]
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[0], other) for other in found)


def test_passes_are_cut_between_sequences() -> None:
    assert list(cut([100, 100, 100, 300, 1], 256)) == [[100, 100], [100], [300], [1]]
    assert list(cut([], 256)) == []
