"""A checkpoint streamed into a folder, opened, and run, against the same weights put into the whole model in memory."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM

from lissom.artifact import MANIFEST, compress_checkpoint, open_folder, read_manifest
from lissom.compress import stream_checkpoint
from lissom.errors import ArtifactError, ModelError, RecipeError
from lissom.formats import CompressedEmbedding, CompressedLinear
from lissom.models import FAMILIES, Checkpoint
from lissom.models.apart import apart
from lissom.progress import Progress
from lissom.types import Recipe

Tiny = Callable[..., Path]
WINDOWS = torch.randint(2048, (4, 12), generator=torch.Generator().manual_seed(5))
RECIPE = Recipe.of(
    {
        "name": "of everything",
        "steps": [
            {"layers": "*.mlp.*", "technique": "wanda", "sparsity": 0.5},
            {"layers": "*.self_attn.*", "technique": "gptq", "bits": 4, "group": 32},
            {"layers": "*.mlp.down_proj", "technique": "rtn", "bits": 8},
            {"layers": "*.mlp.gate_*", "technique": "kmeans", "bits": 3, "rows": 8},
            {"layers": "model.embed_tokens", "technique": "rtn", "bits": 8},
        ],
    }
)


def in_memory(checkpoint: Checkpoint) -> Any:
    """The whole model with the dense matrices of the compressed weights."""
    model: Any = apart(AutoModelForCausalLM.from_pretrained(checkpoint.folder, dtype=torch.float32)).eval()
    for piece in stream_checkpoint(checkpoint, RECIPE, WINDOWS):
        for name, weight in piece.weights.items():
            model.get_submodule(name).weight.data = weight.dense()
    return model


def logits(model: Any, ids: Tensor = WINDOWS) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(ids).logits
    return found


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_written_runs_as_the_same_weights_in_memory(
    tiny: Tiny, family: str, tied: bool, tmp_path: Path
) -> None:
    source = tiny(family, tied)
    out = compress_checkpoint(source, RECIPE, WINDOWS, str(tmp_path / "out"))
    opened = open_folder(out)
    model: Any = opened.model
    torch.testing.assert_close(logits(model), logits(in_memory(Checkpoint(source))), rtol=1e-4, atol=1e-4)
    assert isinstance(model.model.layers[1].mlp.down_proj, CompressedLinear)
    assert isinstance(model.model.embed_tokens, CompressedEmbedding)
    if tied:
        assert model.lm_head.matrix is model.model.embed_tokens.matrix
    assert opened.tokenizer is not None
    assert opened.tokenizer("Once upon")["input_ids"]
    assert not any(parameter.device.type == "meta" for parameter in [*model.parameters(), *model.buffers()])


@pytest.mark.parametrize("tied", [False, True])
def test_a_plain_checkpoint_opens_as_transformers_does(tiny: Tiny, tied: bool) -> None:
    source = tiny("qwen3", tied)
    opened = open_folder(source)
    plain = AutoModelForCausalLM.from_pretrained(source, attn_implementation="sdpa").eval()
    assert torch.equal(logits(opened.model), logits(plain))
    assert opened.manifest == {}
    assert opened.signature is None
    model: Any = opened.model
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied


def test_the_folder_is_complete(tiny: Tiny, tmp_path: Path) -> None:
    told: list[Progress] = []
    out = compress_checkpoint(tiny("llama"), RECIPE, WINDOWS, tmp_path / "out", progress=told.append)
    assert [(event.done, event.total) for event in told] == [(number, 5) for number in range(1, 6)]
    assert [str(event) for event in told] == [
        "model.embed_tokens",
        "model.layers.0",
        "model.layers.1",
        "model.norm",
        "lm_head",
    ]
    manifest = read_manifest(out)
    assert set(manifest["files"]) == {file.name for file in out.iterdir()} - {MANIFEST}
    assert manifest["recipe"] == RECIPE.as_dict()
    assert manifest["kind"] == "language_model"
    config = json.loads((out / "config.json").read_text())
    source = json.loads((tiny("llama") / "config.json").read_text())
    assert config == {**source, "quantization_config": {"made_by": "lissom"}}
    index = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
    for name, file in index.items():
        with safe_open(out / file, framework="pt") as tensors:
            assert name in tensors.keys()  # noqa: SIM118, it is no mapping
    assert {file.suffix for file in out.iterdir()} == {".json", ".safetensors"}
    assert not any(file.read_bytes().startswith((b"\x80", b"PK")) for file in out.iterdir())


def test_the_weights_on_disk_are_as_small_as_claimed(tiny: Tiny, tmp_path: Path) -> None:
    checkpoint = Checkpoint(tiny("llama"))
    out = compress_checkpoint(checkpoint.folder, RECIPE, WINDOWS, tmp_path / "out")
    claimed = sum(
        sum(weight.nbytes for weight in piece.weights.values()) + sum(t.nbytes for t in piece.tensors.values())
        for piece in stream_checkpoint(checkpoint, RECIPE, WINDOWS)
    )
    stored = 0
    for file in out.glob("*.safetensors"):
        content = file.read_bytes()
        stored += len(content) - 8 - int.from_bytes(content[:8], "little")
    assert stored == claimed


def test_transformers_refuses_the_folder_rather_than_filling_it_with_noise(tiny: Tiny, tmp_path: Path) -> None:
    out = compress_checkpoint(tiny("llama"), RECIPE, WINDOWS, tmp_path / "out")
    with pytest.raises(ValueError, match="no `quant_method` attribute"):
        AutoModelForCausalLM.from_pretrained(out)


def test_a_compressed_folder_is_not_compressed_again(tiny: Tiny, tmp_path: Path) -> None:
    out = compress_checkpoint(tiny("llama"), RECIPE, WINDOWS, tmp_path / "out")
    with pytest.raises(ModelError, match="is quantized already, by lissom; give the original model"):
        compress_checkpoint(out, RECIPE, WINDOWS, tmp_path / "again")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([{"technique": "gptq", "group": 48}], r"gptq: group=48 does not divide 32 inputs; try .* of model\."),
        ([{"layers": "*.experts.*", "technique": "rtn"}], "names no layer; there are model.embed_tokens"),
    ],
)
def test_a_recipe_that_cannot_work_leaves_nothing(tiny: Tiny, tmp_path: Path, steps: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        compress_checkpoint(tiny("llama"), Recipe.of(steps), WINDOWS, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_ends_in_the_middle_leaves_nothing(tiny: Tiny, tmp_path: Path) -> None:
    AutoModelForCausalLM.from_pretrained(tiny("llama")).save_pretrained(tmp_path / "in", max_shard_size="100KB")
    sorted((tmp_path / "in").glob("*.safetensors"))[-1].unlink()
    with pytest.raises(ArtifactError, match="cannot be read"):
        compress_checkpoint(tmp_path / "in", RECIPE, WINDOWS, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_folder_that_lost_a_tensor_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(tiny("llama"), tmp_path / "in")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ArtifactError, match=r"has no tensor 'model\.layers\.1\.mlp\.up_proj\.weight'; the checkpoint"):
        open_folder(folder)


def test_a_folder_whose_config_was_changed_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny("llama"), tmp_path / "in")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 48}))
    with pytest.raises(
        ArtifactError, match=r"does not fit config\.json: model\..* is \[64, 32\] in one and \[48, 32\]"
    ):
        open_folder(folder)
