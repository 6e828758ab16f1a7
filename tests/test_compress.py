"""The conductor: what goes in stays as it is, what comes out is in the form that was asked for."""

import copy
import inspect
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from lissom.compress import compress_model, quantize_model, stream_checkpoint
from lissom.errors import DataError, ModelError, RecipeError
from lissom.formats import Affine, Binary, CompressedLayer, Dense, Masked, Palette, Ternary, Trainable, Weight
from lissom.models import FAMILIES, Checkpoint, compressible
from lissom.models.apart import apart
from lissom.statistics import Gram, Moments
from lissom.techniques import TECHNIQUES
from lissom.types import Recipe

GPTQ = {"layers": "*", "technique": "gptq", "bits": 4, "group": 0}


def classifier() -> nn.Sequential:
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def convolutional() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.Flatten(), nn.Linear(128, 4)
    )


def weights(model: nn.Module) -> dict[str, Weight]:
    return {name: layer.weight for name, layer in model.named_modules() if isinstance(layer, CompressedLayer)}


@pytest.mark.parametrize("with_data", [False, True])
@pytest.mark.parametrize("make", [classifier, convolutional])
@pytest.mark.parametrize("compress", [compress_model, quantize_model])
def test_the_input_is_untouched(compress: Any, make: Any, with_data: bool) -> None:
    model = make()
    modules, before = list(model.modules()), copy.deepcopy(model.state_dict())
    data = torch.randn(6, *((32,) if make is classifier else (1, 8, 8))) if with_data else None
    result = compress(model, data)
    assert list(model.modules()) == modules
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in [*model.modules(), *result.modules()])
    assert len(weights(result)) == 3


def test_the_default_prunes_two_in_five_and_shares_sixteen_values() -> None:
    compressed = compress_model(classifier())
    assert len(weights(compressed)) == 3
    for weight in weights(compressed).values():
        assert isinstance(weight, Palette)
        kept = weight.kept()
        assert kept is not None
        assert kept.float().mean() == pytest.approx(0.6, abs=0.02)
        assert weight.dense()[kept].unique().numel() <= 16


@pytest.mark.parametrize(
    ("bits", "kind", "group"),
    [
        (8, Affine, 64),
        (5, Affine, 64),
        (4, Affine, 64),
        (3, Affine, 64),
        (2, Affine, 64),
        ("ternary", Ternary, None),
        ("binary", Binary, None),
    ],
)
@pytest.mark.parametrize("with_data", [False, True])
def test_quantizing_gives_integers_of_so_many_bits(bits: Any, kind: type, group: int | None, with_data: bool) -> None:
    model, x = classifier(), torch.randn(50, 32)
    weight = weights(quantize_model(model, x if with_data else None, bits=bits))["2"]
    assert isinstance(weight, kind)
    if isinstance(weight, Affine):
        assert (weight.bits, weight.group) == (bits, group)


def test_data_makes_the_error_smaller() -> None:
    model = classifier()
    x = torch.randn(300, 32) @ (torch.randn(32, 32) * torch.logspace(-1, 0.5, 32))
    blind, seeing = (quantize_model(model, data, bits=3) for data in (None, x))
    with torch.no_grad():
        errors = [(quantized(x) - model(x)).square().sum() for quantized in (blind, seeing)]
    assert errors[1] < errors[0]


def test_a_step_acts_on_the_layers_of_its_wildcard_in_order() -> None:
    model = nn.ModuleDict({"a": classifier(), "b": nn.Linear(4, 4)})
    steps = [
        {"layers": "a.*", "technique": "magnitude", "sparsity": 0.5},
        {"layers": "a.[02]", "technique": "rtn", "bits": 4},
    ]
    found = weights(compress_model(model, steps=steps))
    assert {name: type(weight) for name, weight in found.items()} == {"a.0": Affine, "a.2": Affine, "a.4": Masked}
    assert (found["a.0"].dense() == 0).float().mean() >= 0.5


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([{"layers": "head", "technique": "rtn"}], "layers='head' names no layer; there are 0, 2, 4"),
        ([{"layers": "*", "technique": "gptq", "group": 24}], "gptq: group=24 does not divide 32 inputs.* of 0"),
        ([{"technique": "prune"}], "unknown technique 'prune'"),
        (["gptq"], "'gptq' is no step"),
    ],
)
def test_a_recipe_that_cannot_work_is_named(steps: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        compress_model(classifier(), steps=steps)


def test_bits_that_are_not_possible_are_named() -> None:
    with pytest.raises(RecipeError, match='bits=9 is not possible; choose 8 to 2, "ternary" or "binary"'):
        quantize_model(classifier(), bits=9)


@pytest.mark.parametrize("compress", [compress_model, quantize_model])
def test_a_model_without_layers_is_refused(compress: Any) -> None:
    with pytest.raises(ModelError, match="Sequential has no Linear, Conv or Embedding layer of its own"):
        compress(nn.Sequential(nn.ReLU()))


@pytest.mark.parametrize("compress", [compress_model, quantize_model])
def test_a_layer_by_itself_says_what_to_do(compress: Any) -> None:
    with pytest.raises(ModelError, match=r"put it in torch\.nn\.Sequential"):
        compress(nn.Linear(4, 4))


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")
@pytest.mark.parametrize("compress", [compress_model, quantize_model])
def test_what_has_no_layers_to_replace_says_what_to_give(compress: Any) -> None:
    with pytest.raises(ModelError, match=r"^'some/folder' is no torch\.nn\.Module; folders .* lissom\.load$"):
        inspect.unwrap(compress)("some/folder")  # without the checks of types that tests run with
    with pytest.raises(ModelError, match=r"TopLevelTracedModule is scripted, .* give the module that it was made of"):
        compress(torch.jit.trace(classifier(), torch.randn(2, 32)))


def test_data_that_the_model_does_not_take_is_told_with_its_shape() -> None:
    with pytest.raises(DataError, match=r"Sequential does not take a batch of \[8, 3\] of float32 \(mat1 and mat2"):
        quantize_model(classifier(), torch.randn(8, 3))


@pytest.mark.parametrize("data", [[], iter([])])
def test_data_without_a_batch_is_refused(data: Any) -> None:
    with pytest.raises(DataError, match="no examples are in it"):
        compress_model(classifier(), data)


def small() -> nn.Sequential:
    return nn.Sequential(nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 4))


def test_a_weight_that_is_no_number_is_named() -> None:
    model = small()
    model[2].weight.data[1, 3] = torch.nan
    with pytest.raises(ModelError, match=r"^2\.weight of Sequential holds 1 numbers .*, the first at \[1, 3\];"):
        compress_model(model, steps=[{"technique": "rtn"}])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"technique": "tuned"}, "the loss on it is nan before"),
        ({"technique": "distil"}, "the loss on it is nan before"),
        ({"technique": "gptq", "group": 0}, "what 0 is given is not finite when the model runs on it"),
    ],
)
def test_data_that_is_no_numbers_is_named_where_it_arrives(more: dict[str, Any], message: str) -> None:
    data = torch.randn(30, 16)
    data[7, 5] = torch.nan
    with pytest.raises(DataError, match=rf"^data: {message}.*; leave out the examples"):
        compress_model(small(), data, steps=[{"technique": "magnitude"}, more])


def test_the_parts_stay_in_their_modes() -> None:
    model: Any = convolutional()
    model[1].eval()
    statistics = model[1].running_mean.clone()
    compressed: Any = compress_model(model, torch.randn(6, 1, 8, 8))
    assert [part.training for part in compressed] == [True, False, True, True, True, True]
    assert torch.equal(compressed[1].running_mean, statistics)


def trained(model: nn.Module, x: Tensor, y: Tensor, steps: int = 30) -> list[float]:
    """The losses of the ordinary training loop."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("bits", [8, 4, 2, "ternary", "binary"])
def test_training_reaches_the_weights_and_the_form_stays(bits: Any) -> None:
    x, y = torch.randn(64, 32), torch.randint(10, (64,))
    quantized = quantize_model(classifier(), bits=bits)
    before = {name: (weight.dense(), weight.spec(), weight.nbytes) for name, weight in weights(quantized).items()}
    losses = trained(quantized, x, y)
    assert losses[-1] < losses[0] - 0.1
    for name, weight in weights(quantized).items():
        assert not torch.equal(weight.dense(), before[name][0])
        assert (weight.spec(), weight.nbytes) == before[name][1:]
        held: Any = quantized.get_submodule(name)
        assert torch.equal(held.matrix(), weight.dense())


@pytest.mark.parametrize("bits", [8, 3, "binary"])
def test_batch_norms_are_told_how_far_layers_have_moved(bits: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 3)).train()
    x = torch.randn(96, 3, 9, 9)
    model(x)
    before = copy.deepcopy(model.eval().state_dict())
    seeing = quantize_model(model, iter(x.split(32)), bits=bits)
    normed, rounded = model[:2](x), seeing[:2](x)
    seeing[1].load_state_dict(model[1].state_dict())
    untold = seeing[:2](x)
    far, was = ((made.var((0, 2, 3)) / normed.var((0, 2, 3)) - 1).abs().max() for made in (rounded, untold))
    assert far == was < 0.02 if bits == 8 else far < 0.1 * was
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


def test_no_more_data_is_held_than_is_read() -> None:
    given: list[weakref.ref[Tensor]] = []

    def read() -> Iterator[Tensor]:
        for _ in range(9):
            x = torch.randn(16, 32)
            given.append(weakref.ref(x))
            assert sum(each() is not None for each in given) <= 3
            yield x

    quantize_model(classifier(), read(), bits=4)
    assert len(given) == 9


def test_pruned_weights_stay_zero_through_quantizing_and_training() -> None:
    x, y = torch.randn(64, 32), torch.randint(10, (64,))
    pruned = compress_model(classifier(), steps=[{"technique": "magnitude", "sparsity": 0.6}])
    for bits in (8, 4, "ternary", "binary"):
        quantized = quantize_model(pruned, x, bits=bits)
        trained(quantized, x, y, steps=5)
        for name, weight in weights(quantized).items():
            assert (weight.dense()[weights(pruned)[name].dense() == 0] == 0).all()


def test_shared_weights_stay_shared_when_they_are_quantized() -> None:
    compressed = compress_model(classifier())
    for weight in weights(quantize_model(compressed, bits=8)).values():
        assert isinstance(weight, Palette)
        assert isinstance(weight.codebook, Affine)
        assert weight.dense().unique().numel() <= 17


class Tied(nn.Module):
    """An embedding and a head with one matrix, as language models have."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(16, 8), nn.Linear(8, 16, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, index: Tensor) -> Tensor:
        logits: Tensor = self.head(self.embedding(index))
        return logits


def test_tied_layers_stay_tied() -> None:
    compressed: Any = quantize_model(Tied(), bits=8)
    assert compressed.head.matrix is compressed.embedding.matrix
    assert isinstance(compressed.head.matrix, Trainable)
    again: Any = quantize_model(compress_model(compressed), bits=4)
    assert again.head.matrix is again.embedding.matrix
    before = again.embedding.weight.dense()
    optimizer = torch.optim.SGD(again.parameters(), lr=1.0)
    again(torch.arange(16)).square().mean().backward()
    optimizer.step()
    assert not torch.equal(before, again.embedding.weight.dense())
    assert torch.equal(again.embedding.weight.dense(), again.head.weight.dense())


def test_a_layer_under_two_names_is_replaced_under_both() -> None:
    layer = nn.Linear(8, 8)
    model = nn.Sequential(layer, nn.Tanh(), layer)
    compressed: Any = quantize_model(model, bits="binary")
    assert compressed[2] is compressed[0]
    assert isinstance(compressed[0], CompressedLayer)
    assert sum(parameter.numel() for parameter in compressed[2].parameters()) == 64 + 8 + 8


RECIPE = Recipe.of(
    [
        {"layers": "model.layers.*.mlp.*", "technique": "sparsegpt", "sparsity": 0.5},
        {"layers": "model.layers.*", "technique": "gptq", "bits": 4, "group": 16},
        {"layers": "model.embed_tokens", "technique": "rtn", "bits": 8},
        {"layers": "lm_head", "technique": "gptq", "bits": 4, "group": 32},
    ]
)
WINDOWS = torch.randint(2048, (6, 16), generator=torch.Generator().manual_seed(3))


def literal(model: Any, name: str, checkpoint: Checkpoint) -> Tensor:
    """One layer's steps on the inputs that it has in a model."""
    seen: list[Tensor] = []
    layer = model.get_submodule(name)
    handle = layer.register_forward_pre_hook(lambda layer, given: seen.append(given[0].reshape(-1, given[0].shape[-1])))
    with torch.no_grad():
        model(WINDOWS)
    handle.remove()
    gram = Gram.zero(layer.in_features)
    gram.see(torch.cat(seen))
    weight: Weight = Dense(values=checkpoint.tensor(f"{name}.weight"))
    if ".mlp." in name:
        weight = TECHNIQUES["sparsegpt"](weight, gram, sparsity=0.5)
    return TECHNIQUES["gptq"](weight, gram, bits=4, group=32 if name == "lm_head" else 16).dense()


@pytest.mark.parametrize("follows", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_block_is_calibrated_on_what_the_original_ones_or_the_compressed_ones_before_it_say(
    tiny: Callable[..., Path], family: str, follows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lissom.compress.stream.FOLLOWING", ("layer",) if follows else ())
    checkpoint = Checkpoint(tiny(family))
    pieces = list(stream_checkpoint(checkpoint, RECIPE, WINDOWS))
    assert [piece.name for piece in pieces] == [
        "model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm", "lm_head",
    ]  # fmt: skip
    whole: Any = apart(AutoModelForCausalLM.from_pretrained(tiny(family))).eval()
    compared = 0
    for piece in pieces:
        for name in piece.weights if piece.name in ("model.layers.1", "lm_head") else ():
            expected = literal(whole, name, checkpoint)
            differing = (expected - piece.weights[name].dense()).abs() > 1e-4
            assert differing.float().mean() < 0.01, name  # a tie may fall the other way
            compared += 1
        for name, weight in piece.weights.items() if follows else ():
            whole.get_submodule(name).weight.data = weight.dense()
    assert compared == len(checkpoint.family.heads) + len(checkpoint.family.neurons) + 3  # the output, down, the head


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_pieces_are_all_the_tensors_of_the_model(tiny: Callable[..., Path], family: str, tied: bool) -> None:
    checkpoint = Checkpoint(tiny(family, tied))
    steps = Recipe.of([{"layers": "*_proj", "technique": "rtn", "bits": 4, "group": 32}])
    pieces = list(stream_checkpoint(checkpoint, steps, torch.empty(0, 16, dtype=torch.long)))
    stored = [name for piece in pieces for name in (*piece.tensors, *(f"{layer}.weight" for layer in piece.weights))]
    assert sorted(stored) == sorted(checkpoint.names)
    named = [name for name in compressible(checkpoint.skeleton()) if name.endswith("_proj")]
    assert sorted(name for piece in pieces for name in piece.weights) == sorted(named)
    for piece in pieces:
        assert all(torch.equal(tensor, checkpoint.tensor(name)) for name, tensor in piece.tensors.items())


def test_without_data_every_input_counts_alike(tiny: Callable[..., Path]) -> None:
    checkpoint = Checkpoint(tiny("llama"))
    recipe = Recipe.of([{"layers": "*_proj", "technique": "wanda"}, {"layers": "lm_head", "technique": "wanda"}])
    for piece in stream_checkpoint(checkpoint, recipe, torch.empty(0, 16, dtype=torch.long)):
        for name, weight in piece.weights.items():
            dense = Dense(values=checkpoint.tensor(f"{name}.weight"))
            expected = TECHNIQUES["wanda"](dense, Moments.blank(dense.shape[1]))
            assert torch.equal(weight.dense(), expected.dense())


def test_a_tied_head_goes_by_the_name_of_the_embedding(tiny: Callable[..., Path]) -> None:
    recipe = Recipe.of([{"layers": "lm_head", "technique": "rtn"}])
    with pytest.raises(RecipeError, match=r"layers='lm_head' names no layer; there are model\.embed_tokens"):
        next(stream_checkpoint(Checkpoint(tiny("llama", True)), recipe, WINDOWS))


def test_pruned_values_take_no_more_bytes_than_they_had(demo_folder: Path) -> None:
    recipe = Recipe.of([{"layers": "model.layers.0.mlp.up_proj", "technique": "magnitude"}])
    windows = torch.empty(0, 16, dtype=torch.long)
    piece = next(p for p in stream_checkpoint(Checkpoint(demo_folder), recipe, windows) if p.weights)
    (weight,) = piece.weights.values()
    assert isinstance(weight, Masked)
    assert weight.values.dtype == torch.bfloat16
