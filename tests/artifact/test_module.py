"""A module into a folder and out again: bit for bit the same, by itself, by its class, or by its graph."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from lissom.artifact import MANIFEST, load, open_folder, save
from lissom.artifact.graph import GRAPH, run_graph
from lissom.artifact.module import FILE, stored_state
from lissom.compress import compress_model, quantize_model
from lissom.engine.kernels import native
from lissom.engine.kernels.conv import PanelConv
from lissom.engine.kernels.panels import PanelLinear
from lissom.engine.lower import lower
from lissom.errors import ArtifactError
from lissom.formats import CompressedConv, CompressedLinear, Trainable, freeze
from lissom.models import compressible


class Own(nn.Module):
    """A class of the user's own: tied layers, a buffer that is not stored, one that is, and a parameter."""

    table: Tensor
    shift: Tensor

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.embedding, self.norm = nn.Embedding(32, width), nn.LayerNorm(width)
        self.up, self.head = nn.Linear(width, width), nn.Linear(width, 32, bias=False)
        self.head.weight = self.embedding.weight
        self.gain = nn.Parameter(torch.tensor(1.5))
        self.register_buffer("table", torch.linspace(0, 1, width), persistent=False)
        self.register_buffer("shift", torch.randn(width))

    def forward(self, index: Tensor) -> Tensor:
        x = self.norm(self.embedding(index)) * self.gain + self.table
        logits: Tensor = self.head(torch.relu(self.up(x + self.shift)))
        return logits


RECTIFY = nn.ReLU()
SEQUENTIALS: dict[str, Callable[[], tuple[nn.Module, tuple[int, ...]]]] = {
    "linear": lambda: (nn.Sequential(nn.Linear(12, 8), nn.GELU("tanh"), nn.Linear(8, 3, bias=False)), (4, 12)),
    "convolutional": lambda: (
        nn.Sequential(
            nn.Conv2d(2, 8, 3, padding=1, padding_mode="circular"),
            nn.BatchNorm2d(8),
            nn.Sequential(nn.LeakyReLU(0.2), nn.Conv2d(8, 8, (3, 1), groups=4, bias=False), nn.MaxPool2d(2)),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(8 * 2 * 3, 5),
            nn.Softmax(dim=1),
        ),
        (3, 2, 6, 6),
    ),
    "one module in two places": lambda: (
        nn.Sequential(nn.Linear(8, 8), RECTIFY, nn.Linear(8, 8), RECTIFY, nn.Linear(8, 4)),
        (5, 8),
    ),
    "one layer in two places": lambda: (nn.Sequential(layer := nn.Linear(8, 8), nn.Tanh(), layer), (5, 8)),
    "double precision": lambda: (nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)).double(), (5, 8)),
    "half precision": lambda: (nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)).bfloat16(), (5, 8)),
    "transposed": lambda: (nn.Sequential(nn.ConvTranspose1d(3, 4, 2), nn.PReLU(4), nn.GroupNorm(2, 4)), (2, 3, 5)),
}
CHANGES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "as it is": lambda model: model,
    "int8": lambda model: quantize_model(model),
    "binary": lambda model: quantize_model(model, bits="binary"),
    "pruned and shared": lambda model: compress_model(model),
    "pruned, shared, int8": lambda model: quantize_model(compress_model(model)),
    "masked": lambda model: compress_model(model, steps=[{"technique": "magnitude"}]),
    "asymmetric": lambda model: compress_model(model, steps=[{"technique": "rtn", "bits": 3, "symmetric": False}]),
}


def answers(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        result: Tensor = copy.deepcopy(model).eval()(x)
    return result


CASES = [(name, change) for name in SEQUENTIALS for change in CHANGES if name != "transposed" or change == "as it is"]


@pytest.mark.parametrize(("name", "change"), CASES)
def test_a_module_of_torch_layers_loads_by_itself(name: str, change: str, tmp_path: Path) -> None:
    made, shape = SEQUENTIALS[name]()
    model, x = CHANGES[change](made), torch.randn(shape, dtype=next(made.parameters()).dtype)
    before = answers(model, x)
    loaded = load(save(model, tmp_path / "saved"))
    assert torch.equal(loaded(x), before)
    assert loaded(x).dtype == before.dtype
    assert not any(part.training for part in loaded.modules())
    assert torch.equal(answers(model, x), before)  # saving left it as it was


@pytest.mark.parametrize("change", CHANGES)
def test_an_own_class_loads_by_its_class_or_by_its_graph(change: str, tmp_path: Path) -> None:
    model, index = CHANGES[change](Own()), torch.tensor([[1, 2, 31], [0, 5, 5]])
    before = answers(model, index)
    folder = save(model, tmp_path / "saved", example=index)
    base = Own()
    state = copy.deepcopy(base.state_dict())
    by_class = load(folder, model=base)
    assert torch.equal(by_class(index), before)
    assert isinstance(by_class, Own)
    assert all(torch.equal(tensor, state[name]) for name, tensor in base.state_dict().items())
    by_graph = load(folder)
    assert torch.equal(by_graph(index), before)
    longer = torch.randint(32, (7, 3))
    assert torch.equal(by_graph(longer), answers(model, longer))


class Mixed(nn.Module):
    """Every kind of layer with a norm behind it; one is asked of which type its inputs should be."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.norm = nn.Embedding(32, 64), nn.LayerNorm(64)
        self.along, self.batch_norm = nn.Conv1d(64, 64, 3, padding=1), nn.BatchNorm1d(64)
        self.head = nn.Linear(64, 5)

    def forward(self, index: Tensor) -> Tensor:
        x = self.norm(self.words(index)).float().mT
        return self.head(self.batch_norm(self.along(x.to(self.along.weight.dtype))).mean(2))


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float64])
def test_a_module_of_another_type_stays_so(kind: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, index = Mixed().to(kind).eval(), torch.randint(32, (4, 7))
    quantized = freeze(quantize_model(model, index)).eval()
    wanted = quantized(index)
    torch.testing.assert_close(wanted, model(index), rtol=0.1, atol=0.1)  # and of the same type
    save(quantized, tmp_path / "graph", example=index)
    save(quantized, tmp_path / "class")
    opened = load(tmp_path / "graph"), load(tmp_path / "class", model=Mixed())
    assert all(torch.equal(one(index), wanted) for one in opened)
    torch.testing.assert_close(lower(opened[0])(index), wanted, rtol=0.1, atol=0.1)
    turned = quantize_model(Mixed().eval()).to(kind)
    assert turned(index).dtype == kind


class Pictures(nn.Module):
    """A class of its own with one layer that is used twice, and one whose attributes are asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 32, 3, padding=1)
        self.again = nn.Conv2d(32, 32, 3, padding=1, bias=False)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.again(torch.relu(self.again(self.first(x)))))
        return self.head(x.mean((2, 3)).view(-1, self.head.in_features))


class Several(nn.Module):
    """Of inputs that need not all be given."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor, mask: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        made: Tensor = self.layer(x if mask is None else x * mask)
        return made if shift is None else made - shift


def test_a_graph_takes_any_of_the_inputs_by_name_or_in_order(tmp_path: Path) -> None:
    quantized = quantize_model(Several())
    x, shift = torch.randn(5, 4), torch.randn(5, 3)
    save(quantized, tmp_path / "out", example={"shift": shift, "x": x})  # no mask
    graph, wanted = load(tmp_path / "out"), quantized(x, shift=shift)
    for said in (graph(shift=shift, x=x), graph(x, shift), graph(x, shift=shift)):
        assert torch.equal(said, wanted)
    assert graph(x=x[:1], shift=shift[:1]).shape == (1, 3)


class Reading(nn.Module):
    """A norm behind a layer, heads that share a matrix, and one that is given an embedding's."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(32, 64)
        self.first, self.norm = nn.Linear(64, 64), nn.BatchNorm1d(64)
        self.same = nn.Linear(64, 32, bias=False)
        self.tied = nn.Linear(64, 32)
        self.tied.weight = self.same.weight

    def forward(self, index: Tensor) -> dict[str, Tensor]:
        x = self.norm(self.first(self.words(index).mean(1)))
        return {"said": torch.nn.functional.linear(x, self.words.weight), "same": self.same(x) + self.tied(x)}


def test_a_module_that_is_not_compressed_is_compressed_from_its_graph(tmp_path: Path) -> None:
    model, index = Reading().eval(), torch.randint(32, (6, 3))
    model.norm.running_mean.normal_()
    opened = load(save(model, tmp_path / "as it was", example=index))
    wanted, said = model(index), opened(index)
    assert all(torch.equal(said[name], wanted[name]) for name in ("said", "same"))
    assert type(opened).__name__ == "Reading"
    assert list(compressible(opened)) == [
        "first",
        "same",
        "tied",
    ]  # the embedding's matrix is read by the module's code
    assert opened.same.weight is opened.tied.weight
    assert isinstance(opened.norm, nn.BatchNorm1d)
    quantized = quantize_model(opened)
    assert quantized.same.matrix is quantized.tied.matrix
    again = load(save(quantized, tmp_path / "smaller", example=index))
    assert torch.equal(again(index)["same"], quantized.eval()(index)["same"])
    by_class = load(tmp_path / "smaller", model=Reading())
    assert torch.equal(by_class(index)["same"], again(index)["same"])
    assert torch.equal(copy.deepcopy(again)(index=index)["same"], again(index)["same"])


def test_a_graph_of_inputs_without_names_still_runs(tmp_path: Path) -> None:
    """As folders of lissom before this one hold it."""
    from torch._export.serde.serialize import serialize

    model, x, shift = Several(), torch.randn(5, 4), torch.randn(5, 3)
    program = torch.export.export(model, (x, x, shift))
    (tmp_path / GRAPH).write_bytes(serialize(program).exported_program)
    graph = run_graph(tmp_path / GRAPH, (model.state_dict(), {}), {}, "Several")
    assert torch.equal(graph(x, shift=shift, mask=x), model(x, x, shift))


def test_a_language_model_of_any_class_has_a_graph(tmp_path: Path) -> None:
    """Which gives no cache back."""
    config = GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=8, vocab_size=32)
    quantized, words = quantize_model(GPT2LMHeadModel(config)), torch.randint(32, (3, 6))
    save(quantized, tmp_path / "out", example={"input_ids": words})
    with torch.no_grad():
        said, wanted = (one(input_ids=words).logits for one in (load(tmp_path / "out"), quantized.eval()))
    torch.testing.assert_close(said, wanted, rtol=1e-5, atol=1e-6)
    assert quantized.config.use_cache


@pytest.mark.skipif(not native.kernels(), reason="the kernels in C were not built: there was no compiler")
def test_a_graph_runs_on_the_kernels(tmp_path: Path) -> None:
    model, x = quantize_model(Pictures()).eval(), torch.randn(3, 3, 8, 8)
    opened = open_folder(save(model, tmp_path / "saved", example=x)).model
    kinds = [type(part) for part in opened.modules()]
    assert (kinds.count(CompressedConv), kinds.count(CompressedLinear)) == (2, 1)
    with torch.no_grad():
        before = model(x)
        assert torch.equal(opened(x), before)
        lowered = lower(opened)
        kinds = [type(part) for part in lowered.modules()]
        assert (kinds.count(PanelConv), kinds.count(PanelLinear)) == (2, 3)  # each convolution is on a product
        torch.testing.assert_close(lowered(x), before, rtol=0.05, atol=0.05)
        assert torch.equal(lowered(x), lower(freeze(model))(x))


def test_tied_weights_are_stored_once_and_stay_tied(tmp_path: Path) -> None:
    for number, model in enumerate((Own(), quantize_model(Own()))):
        folder = save(model, tmp_path / str(number))
        stored = load_file(folder / FILE)
        assert not any(name.startswith("head.") for name in stored)
        loaded: Any = load(folder, model=Own())
        if number:
            assert loaded.head.matrix is loaded.embedding.matrix
        else:
            assert loaded.head.weight is loaded.embedding.weight


def test_one_layer_in_two_places_stays_one(tmp_path: Path) -> None:
    model, _ = SEQUENTIALS["one layer in two places"]()
    for number, kind in enumerate((model, quantize_model(model))):
        folder = save(kind, tmp_path / str(number))
        assert not any(name.startswith("2.") for name in load_file(folder / FILE))
        loaded: Any = load(folder)
        assert loaded[0] is loaded[2]


def test_what_was_trained_further_is_what_is_saved(tmp_path: Path) -> None:
    model = quantize_model(compress_model(SEQUENTIALS["convolutional"]()[0]), bits=4)
    x, y = torch.randn(16, 2, 6, 6), torch.randint(5, (16,))
    before = answers(model, x)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(5):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    learned = answers(model, x)
    assert not torch.equal(learned, before)
    loaded = load(save(model, tmp_path / "saved"))
    assert torch.equal(loaded(x), learned)


def test_a_loaded_module_can_be_trained_and_saved_again(tmp_path: Path) -> None:
    model, x = quantize_model(SEQUENTIALS["linear"]()[0]), torch.randn(4, 12)
    folder = save(model, tmp_path / "one")
    loaded = load(folder, trainable=True)
    assert isinstance(loaded[0].matrix, Trainable)  # type: ignore[index]
    assert torch.equal(answers(loaded, x), answers(model, x))
    optimizer = torch.optim.SGD(loaded.parameters(), lr=0.1)
    loaded(x).square().mean().backward()
    optimizer.step()
    again = load(save(loaded, tmp_path / "two"))
    assert torch.equal(again(x), answers(loaded, x))
    assert not torch.equal(again(x), answers(model, x))


@pytest.mark.parametrize("change", CHANGES)
def test_the_folder_is_as_small_as_claimed(change: str, tmp_path: Path) -> None:
    model: Any = CHANGES[change](nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64, bias=False)))
    folder = save(model, tmp_path / "saved")
    claimed = sum(layer.weight.nbytes for layer in (model[0], model[2]))
    content = (folder / FILE).read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    assert len(content) - header == claimed + model[0].bias.nbytes
    assert sum(tensor.nbytes for tensor in stored_state(load(folder)).values()) == claimed + model[0].bias.nbytes


def test_nothing_in_a_folder_is_a_pickle(tmp_path: Path) -> None:
    folder = save(quantize_model(Own()), tmp_path / "saved", example=torch.tensor([[1, 2]]))
    assert sorted(file.name for file in folder.iterdir()) == ["graph.json", MANIFEST, FILE]
    for file in folder.iterdir():
        content = file.read_bytes()
        assert not content.startswith((b"\x80", b"PK"))
        if file.suffix == ".json":
            json.loads(content)


def test_the_folder_says_what_goes_in_and_out(tmp_path: Path) -> None:
    folder = save(Own(), tmp_path / "saved", example=torch.tensor([[1, 2]]), recipe={"steps": []})
    opened = open_folder(folder)
    assert opened.tokenizer is None
    assert opened.signature == {
        "inputs": [{"name": "index", "datatype": "INT64", "shape": [-1, 2]}],
        "outputs": [{"name": "output", "datatype": "FP32", "shape": [-1, 2, 32]}],
    }
    assert opened.evidence["recipe"] == {"steps": []}
    assert set(opened.evidence["files"]) == {"graph.json", FILE}


def test_without_the_class_and_a_graph_it_says_what_to_give(tmp_path: Path) -> None:
    folder = save(Own(), tmp_path / "saved")
    with pytest.raises(ArtifactError, match=r"holds weights of Own without its code; give model=Own\(\.\.\.\)"):
        load(folder)


def test_another_class_is_refused_by_the_tensor_that_does_not_fit(tmp_path: Path) -> None:
    plain, compressed = save(Own(), tmp_path / "plain"), save(quantize_model(Own()), tmp_path / "compressed")
    other = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(ArtifactError, match=r"does not fit Sequential: tensor '.*' is in one and not the other"):
        load(plain, model=other)
    with pytest.raises(ArtifactError, match="does not fit Sequential: layer 'embedding' is in one and not the other"):
        load(compressed, model=other)


@pytest.mark.parametrize("change", ["as it is", "int8"])
def test_another_width_is_refused(change: str, tmp_path: Path) -> None:
    folder = save(CHANGES[change](Own()), tmp_path / "saved")
    with pytest.raises(ArtifactError, match="does not fit Own"):
        load(folder, model=Own(width=8))


def test_an_example_that_does_not_fit_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="Own does not take the example given"):
        save(Own(), tmp_path / "saved", example=torch.randn(2, 3))
    assert list(tmp_path.iterdir()) == []


def test_a_module_that_cannot_be_exported_says_what_to_do(tmp_path: Path) -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) if x.sum() > 0 else x

    with pytest.raises(ArtifactError, match=r"Branching cannot be exported .*save it without example= and load it by"):
        save(Branching(), tmp_path / "saved", example=torch.ones(2, 4))
    assert list(tmp_path.iterdir()) == []
