"""A program written to a file and read again: the same bits, of every family, format and cache, without PyTorch."""

import gc
import json
import subprocess
import sys
from collections.abc import Iterator
from ctypes import Structure, c_int, c_void_p, sizeof
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import pytest
import torch
from torch import Tensor

from lissom.artifact import compress_checkpoint
from lissom.compress import compress_model
from lissom.engine.build import build, empty
from lissom.engine.decoder import CACHES
from lissom.engine.engine import Engine
from lissom.engine.image import Ready, pointers_of, read, write
from lissom.engine.kernels import native
from lissom.engine.lower import lower
from lissom.engine.native_runner import NativeRunner
from lissom.engine.runner import FAMILIES
from lissom.engine.sequence import Sampling
from lissom.errors import ArtifactError
from lissom.formats import freeze
from lissom.types import Recipe
from tests.engine import test_decoder
from tests.engine.test_decoder import FORMATS, random, runner, tokens

pytestmark = pytest.mark.skipif(not native.kernels(), reason="the kernels in C were not built: there was no compiler")

PROMPTS = [tokens(50), tokens(3)]
RUN = """
import json, sys
from pathlib import Path
from lissom.engine.build import build, empty
from lissom.engine.engine import Engine
from lissom.engine.sequence import Sampling
from lissom.models.tokenizer import Tokenizer

folders, asked = sys.argv[2:], json.loads(sys.argv[1])
files = empty(len(folders))
assert build(folders, files, pages=16, uncertified=False, cache=asked["cache"])
from lissom.engine.image import read
(model, told), *drafts = map(read, files)
tokenizer = Tokenizer.read(Path(folders[0]), told["tokenizer"])
draft = drafts[0][0] if drafts else None
engine = Engine(model, tokenizer, max_tokens_in_cache=256, draft=draft, speculate=asked["speculate"])
(said,) = engine.generate([asked["prompt"]], Sampling(temperature=0, max_tokens=24))
heavy = [name for name in ("torch", "transformers", "jaxtyping", "asyncio") if name in sys.modules]
print(json.dumps({"generated": said.generated, "heavy": heavy, "told": sorted(told)}))
"""


def again(made: NativeRunner) -> NativeRunner:
    """The same runner, from a file."""
    config = SimpleNamespace(vocab_size=7, max_position_embeddings=9)
    model = Ready(passes=made.passes, pages=40, config=config, generation_config=SimpleNamespace(eos_token_id=[1, 2]))
    (file,) = empty(1)
    with file:
        file.write(b"something else")
        write(file, model, {"so": "it is"})
        found, told = read(file)
    assert told == {"so": "it is"}
    assert (found.config, found.generation_config, found.pages) == (config, model.generation_config, 40)
    assert found.passes.how == made.passes.how
    return NativeRunner(found.passes)


def said(made: NativeRunner) -> list[Tensor]:
    return test_decoder.read(made, PROMPTS, 20)


def assert_same(model: Any, cache: str = "float") -> None:
    wanted, found = said(runner(model, cache)), said(again(runner(model, cache)))
    assert all(torch.equal(one, other) for one, other in zip(wanted, found, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_says_the_same_from_a_file(family: str) -> None:
    assert_same(random(family))


@pytest.mark.parametrize("cache", CACHES)
def test_every_cache_says_the_same_from_a_file(cache: str) -> None:
    assert_same(random(tie_word_embeddings=True), cache)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_says_the_same_from_a_file(name: str) -> None:
    data = torch.tensor([tokens(24, seed=seed) for seed in range(4)])
    steps = [{"layers": "*_proj", **step} for step in FORMATS[name][0]]
    assert_same(lower(freeze(compress_model(random(), data, steps=steps)).eval()))


def test_what_is_written_is_let_go_of() -> None:
    made = runner(random())
    weight = made.passes.held.data[-1].owner  # type: ignore[attr-defined]
    kept = sys.getrefcount(weight)
    again(made)
    gc.collect()
    assert sys.getrefcount(weight) < kept


def test_pointers_are_found_within_arrays_and_structs() -> None:
    class Inner(Structure):
        _fields_ = (("number", c_int), ("at", c_void_p))

    class Outer(Structure):
        _fields_ = (("two", Inner * 2), ("last", c_void_p), ("count", c_int))

    assert pointers_of(Outer) == [8, 24, 32]
    assert pointers_of(Outer * 2) == [8, 24, 32, *(sizeof(Outer) + at for at in (8, 24, 32))]
    assert pointers_of(c_int) == []


@pytest.fixture(scope="module")
def folders(demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The bundled model in 8 bits and in 4."""
    made = [tmp_path_factory.mktemp("built") / f"{bits} bits" for bits in (8, 4)]
    nothing = torch.empty(0, 8, dtype=torch.long)
    for folder, bits in zip(made, (8, 4), strict=True):
        compress_checkpoint(demo_folder, Recipe.of([{"technique": "rtn", "bits": bits}]), nothing, folder)
    return made


@pytest.mark.parametrize(("count", "speculate"), [(1, "off"), (1, "always"), (2, "always")])
def test_a_process_without_pytorch_writes_the_same(
    count: int, speculate: str, folders: list[Path], tokenizer: Any
) -> None:
    from lissom.artifact import open_folder

    prompt = tokenizer("Once upon a time there was")["input_ids"]
    asked = json.dumps({"cache": "float", "prompt": prompt, "speculate": speculate})
    done = subprocess.run(
        [sys.executable, "-c", RUN, asked, *map(str, folders[:count])], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-800:]
    found = json.loads(done.stdout)
    opened = open_folder(folders[0], bare=True)
    engine = Engine(lower(opened.model), opened.tokenizer, max_tokens_in_cache=256, cache="float", speculate="off")  # type: ignore[arg-type]
    (wanted,) = engine.generate([prompt], Sampling(temperature=0, max_tokens=24))
    assert found == {"generated": wanted.generated, "heavy": [], "told": ["evidence", "tokenizer"]}


@pytest.fixture
def file() -> Iterator[BinaryIO]:
    with empty(1)[0] as one:
        yield one


def test_what_is_wrong_with_a_folder_is_said_by_who_asked(folders: list[Path], tmp_path: Path, file: BinaryIO) -> None:
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for part in folders[1].iterdir():
        (damaged / part.name).write_bytes(part.read_bytes())
    victim = next(damaged.glob("*.safetensors"))
    victim.write_bytes(victim.read_bytes()[:-1] + b"!")
    with pytest.raises(ArtifactError, match=victim.name):
        build([damaged], [file], cache="auto", pages=16, uncertified=False)


def test_what_needs_pytorch_is_left_to_it(folders: list[Path], demo_folder: Path, file: BinaryIO) -> None:
    assert not build([demo_folder], [file], cache="auto", pages=16, uncertified=False)  # no folder of ours
    assert not build([folders[0]], [file], cache="int4", pages=16, uncertified=False)  # a cache without a kernel
    assert not build([folders[0]], [], cache="auto", pages=16, uncertified=False)  # no room for a file
