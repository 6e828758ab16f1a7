"""Bare language models against those of transformers: the same numbers, tokens and logits, and nothing imported."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lissom.artifact import MANIFEST, compress_checkpoint, open_folder
from lissom.artifact.manifest import write_json
from lissom.engine import Engine, Sampling
from lissom.engine.kernels import native
from lissom.engine.lower import lower
from lissom.engine.runner import Runner
from lissom.errors import ArtifactError
from lissom.files import read_json
from lissom.models import FAMILIES
from lissom.models.checkpoint import skeleton
from lissom.models.form import Bare, form_of
from lissom.types import Recipe

Tiny = Callable[..., Path]
STEPS: list[dict[str, Any]] = [
    {"layers": "*.self_attn.*", "technique": "rtn", "bits": 8},
    {"layers": "*.1.mlp.*", "technique": "rtn", "bits": 4, "group": 32},  # those of the first block stay as they are
    {"layers": "model.embed_tokens", "technique": "rtn", "bits": 8},
]
PROMPTS = [[5, 9, 200, 1000], list(range(3, 40))]
GREEDY = Sampling(temperature=0, max_tokens=6, ignore_eos=True, logprobs=3)


def compressed(source: Path, out: Path, steps: list[dict[str, Any]]) -> Path:
    return compress_checkpoint(source, Recipe.of(steps), torch.empty(0, 8, dtype=torch.long), out)


def said(model: nn.Module, tokenizer: Any, cache: str = "float") -> list[Any]:
    """What an engine writes, and how probable it finds it."""
    engine = Engine(model, tokenizer, max_tokens_in_cache=1024, cache=cache)  # type: ignore[arg-type]
    return [(done.text, done.generated, done.choices) for done in engine.generate(PROMPTS, GREEDY)]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("steps", [STEPS, STEPS[:2]], ids=["embedding too", "layers"])
def test_a_bare_model_says_what_the_model_of_transformers_says(
    tiny: Tiny, tmp_path: Path, family: str, tied: bool, steps: list[dict[str, Any]]
) -> None:
    out = compressed(tiny(family, tied), tmp_path / "out", steps)
    bare, usual = open_folder(out, bare=True), open_folder(out)
    assert isinstance(bare.model, Bare)
    assert not isinstance(usual.model, Bare)
    for name, told in form_of(skeleton(usual.model.config))["parts"].items():  # type: ignore[arg-type]
        part: Any = bare.model.get_submodule(name)
        for number, value in told.items():
            found = getattr(part, number)
            assert (found.tolist() if isinstance(found, Tensor) else found) == value
    assert not any(held.is_meta for held in [*bare.model.parameters(), *bare.model.buffers()])
    assert said(lower(bare.model), bare.tokenizer) == said(lower(usual.model), usual.tokenizer)


def test_blocks_run_in_the_order_of_their_numbers(tiny: Tiny, tmp_path: Path) -> None:
    """By the alphabet the eleventh would come before the third."""
    out = compressed(tiny("llama", blocks=12), tmp_path / "out", STEPS)
    bare, usual = open_folder(out, bare=True), open_folder(out)
    assert list(bare.model.get_submodule("model.layers")._modules) == [str(number) for number in range(12)]
    assert said(lower(bare.model), bare.tokenizer) == said(lower(usual.model), usual.tokenizer)


@pytest.mark.parametrize("family", FAMILIES)
def test_where_pytorch_has_to_run_it_a_bare_model_becomes_whole(tiny: Tiny, tmp_path: Path, family: str) -> None:
    out = compressed(tiny(family, True), tmp_path / "out", STEPS)
    bare, usual = open_folder(out, bare=True), open_folder(out)
    ids = torch.tensor(PROMPTS[1:])
    with torch.no_grad():
        assert torch.equal(bare.model.whole()(ids).logits, usual.model(ids).logits)  # type: ignore[operator]
    low, high = lower(bare.model), lower(usual.model)
    assert isinstance(Engine(low, bare.tokenizer, max_tokens_in_cache=1024, cache="int4")._runner, Runner)  # type: ignore[arg-type]
    assert said(low, bare.tokenizer, "int4") == said(high, usual.tokenizer, "int4")


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "linear", "factor": 2.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    ],
    ids=lambda scaling: scaling["rope_type"],
)
def test_angles_of_every_kind_are_those_of_transformers(tiny: Tiny, tmp_path: Path, scaling: dict[str, Any]) -> None:
    source = shutil.copytree(tiny("llama"), tmp_path / "source")
    config = read_json(source / "config.json")
    write_json(source / "config.json", {**config, "rope_parameters": {"rope_theta": 10000.0, **scaling}})
    out = compressed(source, tmp_path / "out", STEPS)
    bare, usual = open_folder(out, bare=True), open_folder(out)
    mine, theirs = (opened.model.get_submodule("model.rotary_emb") for opened in (bare, usual))
    assert torch.equal(mine.inv_freq, theirs.inv_freq)  # type: ignore[arg-type]
    assert mine.attention_scaling == theirs.attention_scaling
    assert said(lower(bare.model), bare.tokenizer) == said(lower(usual.model), usual.tokenizer)


def test_blocks_of_different_widths_are_grown_as_their_tensors_say(tiny: Tiny, tmp_path: Path) -> None:
    steps = [
        {"layers": "model.layers.0.mlp.*", "technique": "channels", "sparsity": 0.5},
        {"layers": "model.layers.1.self_attn.*", "technique": "heads", "sparsity": 0.5},
    ]
    windows = torch.randint(2048, (4, 12), generator=torch.Generator().manual_seed(5))
    out = compress_checkpoint(tiny("qwen3"), Recipe.of(steps), windows, tmp_path / "out")
    bare, usual = open_folder(out, bare=True), open_folder(out)
    ids = torch.tensor(PROMPTS[1:])
    with torch.no_grad():
        assert torch.equal(bare.model.whole()(ids).logits, usual.model(ids).logits)  # type: ignore[operator]
    assert said(bare.model, bare.tokenizer) == said(usual.model, usual.tokenizer)


def test_of_folders_that_do_not_say_it_transformers_says_the_form(tiny: Tiny, tmp_path: Path) -> None:
    out = compressed(tiny("llama"), tmp_path / "out", STEPS)
    manifest = read_json(out / MANIFEST)
    write_json(out / MANIFEST, {name: value for name, value in manifest.items() if name not in ("form", "tokenizer")})
    for folder in (tiny("llama"), out):
        bare, usual = open_folder(folder, bare=True), open_folder(folder)
        assert isinstance(bare.model, Bare)
        assert said(lower(bare.model), bare.tokenizer) == said(lower(usual.model), usual.tokenizer)


def test_an_incomplete_checkpoint_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny("llama"), tmp_path / "source")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ArtifactError, match=r"no tensor 'model\.layers\.1\.mlp\.up_proj\.weight'"):
        open_folder(folder, bare=True)


def of_16_bits(source: Path, folder: Path, dtype: torch.dtype) -> Path:
    """A checkpoint in another type."""
    shutil.copytree(source, folder)
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["qwen3", "gemma2", "qwen3_moe"])
def test_matrices_of_16_bits_stay_as_they_are_and_say_what_they_say_in_32(
    tiny: Tiny, tmp_path: Path, family: str, dtype: torch.dtype, tied: bool
) -> None:
    source = of_16_bits(tiny(family, tied), tmp_path / "source", dtype)
    ids = torch.tensor(PROMPTS[1:])
    for folder in (source, compressed(source, tmp_path / "out", STEPS[:2])):
        bare, usual = open_folder(folder, bare=True), open_folder(folder)
        kept = [held for held in bare.model.parameters() if held.dim() == 2]
        assert {held.dtype for held in kept} == {dtype}
        assert {held.dtype for held in bare.model.parameters() if held.dim() == 1} == {torch.float32}
        assert all(mapped_from(folder, held) for held in kept)
        with torch.no_grad():
            whole: Any = bare.model.whole()  # type: ignore[operator]
            assert torch.equal(whole(ids).logits, usual.model(ids).logits)
        assert (whole.lm_head.weight.data_ptr() == whole.model.embed_tokens.weight.data_ptr()) == tied
        assert {held.dtype for held in kept} == {dtype}  # in the bare model still
        assert said(lower(bare.model), bare.tokenizer) == said(lower(usual.model), usual.tokenizer)


def test_what_is_packed_is_not_mapped_any_more_beside_what_stays(tiny: Tiny, tmp_path: Path) -> None:
    source = of_16_bits(tiny("qwen3"), tmp_path / "source", torch.bfloat16)
    out = compressed(source, tmp_path / "out", [{"layers": "*.mlp.*", "technique": "rtn", "bits": 8}])
    model: Any = open_folder(out, bare=True).model
    before = len(mappings(out))
    lowered: Any = lower(model)
    assert (before, len(mappings(out))) == (2 + 2 * 2, 2 + 2)  # embedding, blocks with two formats each, head
    assert all(mapped_from(out, block.self_attn.q_proj.weight) for block in lowered.model.layers.children())


def mappings(folder: Path) -> list[tuple[int, int]]:
    """Where in memory files of a folder are mapped."""
    lines = [line.split()[0] for line in Path("/proc/self/maps").read_text().splitlines() if str(folder) in line]
    ranges = [line.split("-") for line in lines]
    return [(int(first, 16), int(last, 16)) for first, last in ranges]


def mapped_from(folder: Path, tensor: Tensor) -> bool:
    """Whether a tensor lies in memory where a file of a folder is mapped."""
    first, last = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
    return any(begin <= first and last <= end for begin, end in mappings(folder))


@pytest.mark.parametrize("tied", [True, False])
def test_what_is_narrow_says_the_same_and_stays_as_it_is_stored(tiny: Tiny, tmp_path: Path, tied: bool) -> None:
    folder = tmp_path / "narrow"
    shutil.copytree(tiny("qwen3", tied), folder)
    stored = {name: tensor.bfloat16() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(stored, folder / "model.safetensors")
    wide, narrow = (lower(open_folder(folder, narrow=narrow).model) for narrow in (False, True))
    held = [part for part in narrow.buffers() if part.dtype == torch.bfloat16]
    assert all(mapped_from(folder, part) for part in held)
    assert sum(part.numel() for part in held) == sum(t.numel() for t in stored.values() if t.dim() == 2)
    ids = torch.randint(2048, (2, 8))
    with torch.no_grad():
        assert torch.equal(narrow(ids).logits, wide(ids).logits)


SERVING = """
import sys
from lissom.artifact import open_folder
from lissom.engine import Engine, Sampling
from lissom.engine.lower import lower
from lissom.server import LanguageService, create_app

opened = open_folder(sys.argv[1], bare=True)
service = LanguageService(model=lower(opened.model), tokenizer=opened.tokenizer, name="small")
create_app([service])
engine = Engine(service.model, service.tokenizer, max_tokens_in_cache=256)
done = engine.generate([service.tokenizer.encode("Once upon a time")], Sampling(temperature=0, max_tokens=4))
assert done[0].text
print([name for name in ("transformers", "scipy", "torch._dynamo", "lissom.techniques") if name in sys.modules])
"""


@pytest.mark.skipif(not native.kernels(), reason="the kernels in C were not built: there was no compiler")
def test_serving_imports_nothing_that_it_does_not_need(tiny: Tiny, tmp_path: Path) -> None:
    out = compressed(tiny("qwen3"), tmp_path / "out", STEPS)
    done = subprocess.run(
        [sys.executable, "-c", SERVING, out], capture_output=True, text=True, check=False, env=dict(os.environ)
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
