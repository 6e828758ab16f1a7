"""Reading a checkpoint tensor by tensor, and saying in one line what is wrong with a folder."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from lissom.errors import ArtifactError, ModelError
from lissom.models import FAMILIES, Checkpoint, is_checkpoint
from lissom.models.checkpoint import INDEX, find, read_tokenizer
from lissom.models.families import at

Tiny = Callable[..., Path]


@pytest.fixture
def folder(tiny: Tiny, tmp_path: Path) -> Path:
    """A checkpoint that may be spoiled."""
    return shutil.copytree(tiny("llama"), tmp_path / "model")


def configure(folder: Path, **entries: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **entries}))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_parts_add_up_to_the_model(tiny: Tiny, family: str, tied: bool) -> None:
    checkpoint = Checkpoint(tiny(family, tied))
    model, parts = checkpoint.skeleton(), checkpoint.family
    for name in (parts.embedding, parts.norm, *(f"{parts.blocks}.{n}" for n in range(2)), *[parts.head] * (not tied)):
        checkpoint.fill(model, name)
    if tied:
        at(model, parts.head).weight = at(model, parts.embedding).weight
    ids = torch.arange(12).reshape(1, 12)
    whole = AutoModelForCausalLM.from_pretrained(tiny(family, tied)).eval()
    with torch.no_grad():
        assert torch.equal(model(ids).logits, whole(ids).logits)


def test_a_tensor_comes_in_the_type_it_is_stored_in(demo_folder: Path) -> None:
    checkpoint = Checkpoint(demo_folder)
    assert checkpoint.tensor("model.norm.weight").dtype == torch.bfloat16
    assert checkpoint.fill(checkpoint.skeleton(), "model.norm").weight.dtype == torch.float32


def test_a_checkpoint_in_several_files_is_read_by_its_index(tiny: Tiny, tmp_path: Path) -> None:
    AutoModelForCausalLM.from_pretrained(tiny("llama")).save_pretrained(tmp_path, max_shard_size="100KB")
    assert (tmp_path / INDEX).is_file()
    one, many = Checkpoint(tiny("llama")), Checkpoint(tmp_path)
    assert sorted(many.names) == sorted(one.names)
    assert all(torch.equal(one.tensor(name), many.tensor(name)) for name in one.names)


def test_files_without_an_index_are_read_too(folder: Path) -> None:
    from safetensors.torch import save_file

    tensors = load_file(folder / "model.safetensors")
    norm = tensors.pop("model.norm.weight")
    save_file(tensors, folder / "model.safetensors")
    save_file({"model.norm.weight": norm}, folder / "norm.safetensors")
    assert torch.equal(Checkpoint(folder).tensor("model.norm.weight"), norm)


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    assert not is_checkpoint(tmp_path)
    with pytest.raises(ModelError, match=r"is no model: it needs config\.json and \*\.safetensors files"):
        find(tmp_path)


@pytest.mark.parametrize("name", ["/no/such/place", "./nothing", "a/b/c"])
def test_a_path_that_is_not_there_is_no_hub_name(name: str) -> None:
    with pytest.raises(ModelError, match="is no folder; give the folder of a model, or its hub name"):
        find(name)


def test_a_hub_name_that_cannot_be_reached_says_so() -> None:
    with pytest.raises(ModelError, match="'nobody/nothing' is neither a folder here nor a model on the hub"):
        find("nobody/nothing")


def test_an_unknown_architecture_is_refused(folder: Path) -> None:
    configure(folder, model_type="mamba")
    with pytest.raises(ModelError, match="unknown architecture 'mamba'"):
        Checkpoint(folder)


@pytest.mark.parametrize(
    ("entry", "method"),
    [({"quant_method": "awq"}, "awq"), ({"made_by": "lissom"}, "lissom"), ({"bits": 4}, "another tool")],
)
def test_a_model_that_is_quantized_already_is_refused(folder: Path, entry: dict[str, object], method: str) -> None:
    configure(folder, quantization_config=entry)
    with pytest.raises(ModelError, match=f"is quantized already, by {method}; give the original model"):
        Checkpoint(folder)


def test_an_empty_quantization_entry_is_none(folder: Path) -> None:
    configure(folder, quantization_config=None)
    assert Checkpoint(folder).names


def test_a_config_that_makes_no_model_is_named(folder: Path) -> None:
    configure(folder, hidden_size="wide")
    with pytest.raises(ModelError, match=r"config\.json"):
        Checkpoint(folder).skeleton()


def test_a_tensor_of_another_shape_is_named(folder: Path) -> None:
    configure(folder, intermediate_size=48)
    checkpoint = Checkpoint(folder)
    with pytest.raises(ArtifactError, match=r"does not fit config\.json: model\.layers\.0\.mlp\.gate_proj"):
        checkpoint.fill(checkpoint.skeleton(), "model.layers.0")


def test_a_missing_tensor_is_named(folder: Path) -> None:
    with pytest.raises(ArtifactError, match=r"has no tensor 'model\.nothing'; the checkpoint is incomplete"):
        Checkpoint(folder).tensor("model.nothing")


def test_a_file_cut_short_is_named(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match=r"model\.safetensors cannot be read: .*; copy or download it again"):
        Checkpoint(folder)


def test_a_file_of_the_index_that_is_missing_is_named(folder: Path) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": {"model.norm.weight": "gone.safetensors"}}))
    with pytest.raises(ArtifactError, match=r"gone\.safetensors cannot be read"):
        Checkpoint(folder).tensor("model.norm.weight")


def test_an_index_that_is_none_is_named(folder: Path) -> None:
    (folder / INDEX).write_text("{}")
    with pytest.raises(ArtifactError, match="weight_map"):
        Checkpoint(folder)


def test_a_folder_without_a_tokenizer_is_named(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(ModelError, match="has no tokenizer that can be read"):
        read_tokenizer(folder)
