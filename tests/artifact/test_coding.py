"""Entropy coding: exact, smaller where codes are skewed, and an error where it is damaged."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import lissom
from lissom.artifact.coding import CODED, HEADER, decode, encode, regroup
from lissom.artifact.tensors import payload, read_tensors, write_tensors
from lissom.errors import ArtifactError, RecipeError
from lissom.formats.plane import pack


def skewed(bits: int, rows: int = 40, columns: int = 200) -> Tensor:
    random = torch.Generator().manual_seed(bits)
    codes = (torch.randn(rows, columns, generator=random) * 2**bits / 8 + 2**bits / 2).clamp(0, 2**bits - 1)
    return pack(codes.to(torch.uint8), bits)


@pytest.mark.parametrize("unit", [5, 6, 7, 8])
@pytest.mark.parametrize("size", [1, 7, 840 * 1024 - 1, 840 * 1024 + 9])
def test_regrouped_streams_hold_the_same_bits(unit: int, size: int) -> None:
    octets = torch.randint(256, (size,), dtype=torch.uint8, generator=torch.Generator().manual_seed(size))
    units = regroup(octets, unit, 8)
    assert len(units) == -(-size * 8 // unit)
    assert int(units.max()) < 2**unit
    assert torch.equal(regroup(units, 8, unit)[:size], octets)


def test_a_unit_is_two_codes_of_three_bits() -> None:
    codes = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 0, 1, 1]], dtype=torch.uint8)
    units = regroup(pack(codes, 3).flatten().view(torch.uint8), 6, 8)
    assert units[:5].tolist() == [1 | 2 << 3, 3 | 4 << 3, 5 | 6 << 3, 7, 1 | 1 << 3]


@pytest.mark.parametrize("bits", range(2, 9))
def test_codes_take_little_more_than_their_entropy(bits: int) -> None:
    words = skewed(bits, 200, 320)
    found, header = encode({"layer.weight_packed": words})
    coded = found["layer.weight_packed"]
    random = torch.Generator().manual_seed(bits)
    codes = (torch.randn(200, 320, generator=random) * 2**bits / 8 + 2**bits / 2).clamp(0, 2**bits - 1).byte()
    share = codes.flatten().bincount().double() / codes.numel()
    entropy = -(share[share > 0] * share[share > 0].log2()).sum() * codes.numel() / 8
    assert coded.dtype == torch.uint8
    assert entropy * 0.99 < coded.numel() < entropy * 1.05
    assert torch.equal(decode(found, header, "here")["layer.weight_packed"], words)


@pytest.mark.parametrize("kind", CODED.values(), ids=str)
@pytest.mark.parametrize("shape", [(1,), (3, 5), (2, 3, 4), (64, 64)])
def test_every_type_and_shape_comes_back(kind: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = torch.full(shape, 3).to(kind)
    found, header = encode({"a": tensor, "plain": torch.randn(3)})
    again = decode(found, header, "here")
    assert again["a"].dtype == kind
    assert torch.equal(again["a"], tensor)
    assert torch.equal(again["plain"], found["plain"])


def test_what_gets_no_smaller_is_left_as_it_is() -> None:
    noise = torch.randint(256, (1000,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found, header = encode({"noise": noise, "empty": torch.empty(0, dtype=torch.uint8)})
    assert found["noise"] is noise
    assert header == {}


def test_a_file_is_as_small_as_is_told(tmp_path: Path) -> None:
    tensors = {"a.weight_packed": skewed(4), "a.bias": torch.randn(5)}
    write_tensors(tmp_path / "m.safetensors", tensors, "deflate")
    with safe_open(tmp_path / "m.safetensors", framework="pt") as file:
        stored = sum(file.get_tensor(name).nbytes for name in tensors)
    assert payload(tmp_path / "m.safetensors") == stored < sum(t.nbytes for t in tensors.values())
    again = read_tensors(tmp_path)
    assert set(again) == set(tensors)
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())


def cut(coded: Tensor, note: dict[str, Any]) -> Tensor:
    return coded[:-9]


def flipped(coded: Tensor, note: dict[str, Any]) -> Tensor:
    return torch.cat([coded[:50], coded[50:60] ^ 0x55, coded[60:]])


def longer(coded: Tensor, note: dict[str, Any]) -> Tensor:
    note["shape"][0] += 1
    return coded


def shorter(coded: Tensor, note: dict[str, Any]) -> Tensor:
    note["shape"][0] -= 1
    return coded


def unnamed_type(coded: Tensor, note: dict[str, Any]) -> Tensor:
    note["dtype"] = "object"
    return coded


def other_unit(coded: Tensor, note: dict[str, Any]) -> Tensor:
    note["unit"] = 0
    return coded


def no_shape(coded: Tensor, note: dict[str, Any]) -> Tensor:
    del note["shape"]
    return coded


@pytest.mark.parametrize("damage", [cut, flipped, longer, shorter, unnamed_type, other_unit, no_shape])
def test_damage_is_an_error(damage: Callable[[Tensor, dict[str, Any]], Tensor], tmp_path: Path) -> None:
    found, header = encode({"a": skewed(4)})
    said = json.loads(header[HEADER])
    found["a"] = damage(found["a"], said["tensors"]["a"]).clone()
    save_file(found, tmp_path / "m.safetensors", {HEADER: json.dumps(said)})
    with pytest.raises(ArtifactError, match=r"m\.safetensors cannot be decoded"):
        read_tensors(tmp_path)


@pytest.mark.parametrize(
    "said", ["no json", "[]", '{"coder": "deflate"}', '{"coder": "deflate", "tensors": {"b": {}}}']
)
def test_a_damaged_header_is_an_error(said: str) -> None:
    with pytest.raises(ArtifactError, match="cannot be decoded"):
        decode({"a": torch.zeros(3)}, {HEADER: said}, "here")


def test_a_later_coder_is_named() -> None:
    with pytest.raises(ArtifactError, match="coded by 'tans', unknown to this lissom"):
        decode({}, {HEADER: '{"coder": "tans", "tensors": {}}'}, "here")


@pytest.fixture
def pruned() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10))
    return lissom.compress_model(
        model,
        steps=[{"technique": "magnitude", "sparsity": 0.8}, {"technique": "kmeans", "bits": 4, "rows": 0}],
    )


def test_a_saved_module_is_smaller_and_the_same(pruned: nn.Module, tmp_path: Path) -> None:
    x = torch.randn(3, 256)
    plain = lissom.save(pruned, tmp_path / "plain")
    coded = lissom.save(pruned, tmp_path / "coded", entropy_coding="deflate")
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (plain, coded)]
    assert sizes[1] < 0.95 * sizes[0]
    assert torch.equal(lissom.load(coded)(x), lissom.load(plain)(x))
    tensors = load_file(coded / "model.safetensors")
    assert set(tensors) == set(load_file(plain / "model.safetensors"))
    with safe_open(coded / "model.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()[HEADER])["coder"] == "deflate"


def test_an_unknown_coder_is_refused_before_anything_is_written(pruned: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="entropy_coding='zip' is unknown; choose deflate, or none"):
        lissom.save(pruned, tmp_path / "out", entropy_coding="zip")
    assert list(tmp_path.iterdir()) == []


TURNED = [{"technique": "hadamard"}, {"technique": "gptq", "bits": 3, "group": 16}, {"technique": "dynamic"}]


@pytest.mark.parametrize("chosen", [[{"technique": "kmeans", "bits": 3, "rows": 0}], TURNED], ids=["kmeans", "turned"])
def test_a_language_model_is_coded_part_by_part_and_opens_the_same(tiny: Any, tmp_path: Path, chosen: Any) -> None:
    steps = lissom.Recipe.of([{"layers": "model.layers.*", **step} for step in chosen])
    windows, ids = torch.empty(0, 8, dtype=torch.long), torch.arange(8).unsqueeze(0)
    folders = [
        lissom.compress_checkpoint(tiny("llama"), steps, windows, tmp_path / str(coding), entropy_coding=coding)
        for coding in (None, "deflate")
    ]
    plain, coded = (lissom.load(folder)(input_ids=ids).logits for folder in folders)
    assert torch.equal(plain, coded)
    index = json.loads((folders[1] / "model.safetensors.index.json").read_text(encoding="utf-8"))
    stored = [tensor for file in folders[1].glob("*.safetensors") for tensor in load_file(file).values()]
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in stored)
