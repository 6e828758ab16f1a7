"""Each mistake is one line on the error stream and exit code 2, and leaves nothing behind."""

import json
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from torch import nn

Tiny = Callable[..., Path]
Run = Callable[..., Any]


def refused(done: Any, message: str, folder: Path, before: set[Path]) -> None:
    """One line that says what is wrong, exit code 2, and nothing new on disk."""
    assert done.code == 2, done
    assert done.error.startswith("lissom: ")
    assert done.error.count("\n") == 1, done.error
    assert message in done.error
    assert done.out == ""
    assert set(folder.rglob("*")) == before


def spoiled(tiny: Tiny, folder: Path, spoil: Callable[[Path], object]) -> Path:
    """A copy of a checkpoint, with something done to it."""
    copied = Path(shutil.copytree(tiny("llama"), folder / "spoiled"))
    spoil(copied)
    return copied


def configured(**entries: object) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **entries}))

    return change


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


BAD_MODELS: list[tuple[Callable[[Path], object], str]] = [
    (lambda folder: (folder / "config.json").unlink(), "is no model: it needs config.json and *.safetensors files"),
    (configured(model_type="rwkv"), "unknown architecture 'rwkv'; language models known are llama, mistral"),
    (configured(hidden_size=48), "does not fit config.json"),
    (configured(hidden_size="48"), "config.json makes no model"),
    (cut, "model.safetensors cannot be read"),
    (lambda folder: (folder / "config.json").write_text("{"), "config.json cannot be read"),
    (configured(quantization_config={"quant_method": "eetq"}), "is quantized already, by eetq; give the original"),
]
VERBS: dict[str, Callable[[Path, Path, Path], tuple[object, ...]]] = {
    "compress": lambda text, recipe, out: ("--recipe", recipe, "--data", text, "--length", 16, "--out", out),
    "optimize": lambda text, recipe, out: ("--data", text, "--length", 16, "--max-drop", "5%", "--out", out),
    "evaluate": lambda text, recipe, out: ("--data", text, "--length", 16),
    "bench": lambda text, recipe, out: (),
    "serve": lambda text, recipe, out: ("--port", 0),
}


@pytest.mark.parametrize("verb", ["compress", "optimize", "serve"])
@pytest.mark.parametrize(("spoil", "message"), BAD_MODELS, ids=[message[:20] for _, message in BAD_MODELS])
def test_a_bad_model_is_one_line(
    run: Run, tiny: Tiny, recipe: Path, text: Path, tmp_path: Path, verb: str, spoil: Any, message: str
) -> None:
    model = spoiled(tiny, tmp_path, spoil)
    before = set(tmp_path.rglob("*"))
    refused(run(verb, model, *VERBS[verb](text, recipe, tmp_path / "out")), message, tmp_path, before)


@pytest.mark.parametrize("verb", VERBS)
def test_a_model_that_is_not_there_is_one_line(run: Run, recipe: Path, text: Path, tmp_path: Path, verb: str) -> None:
    before = set(tmp_path.rglob("*"))
    options = VERBS[verb](text, recipe, tmp_path / "out")
    refused(run(verb, tmp_path / "none", *options), "is no folder; give the folder of a model", tmp_path, before)
    refused(run(verb, "nobody/nothing", *options), "nor a model on the hub that can be reached", tmp_path, before)


@pytest.mark.parametrize("verb", ["evaluate", "bench", "serve"])
def test_a_compressed_folder_that_was_altered_is_one_line(
    run: Run, tiny: Tiny, recipe: Path, text: Path, tmp_path: Path, verb: str
) -> None:
    out = tmp_path / "out"
    assert run("compress", tiny("llama"), "--recipe", recipe, "--out", out).code == 0
    file = next(out.glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    before = set(tmp_path.rglob("*"))
    refused(run(verb, out, *VERBS[verb](text, recipe, out)), "(SHA-256 differs); copy the folder", tmp_path, before)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("steps: [{technique: gptq, group: 48}]", "gptq: group=48 does not divide 32 inputs"),
        ("steps: [{technique: gtpq}]", "unknown technique 'gtpq'"),
        ("steps: [{technique: gptq, bit: 4}]", "gptq has no knob 'bit'"),
        ("steps: [{technique: wanda, layers: nothing.*}]", "layers='nothing.*' names no layer"),
        ("step: []", "unknown entry 'step'"),
        ("steps: {technique: gptq}", "found dict where a list"),
        ("", "found NoneType where a list"),
        ("steps: [", "recipe.yaml cannot be read"),
        ("steps: [!!python/object/apply:os.getcwd []]", "recipe.yaml cannot be read"),
    ],
)
def test_a_bad_recipe_is_one_line(
    run: Run, tiny: Tiny, recipe: Path, tmp_path: Path, content: str, message: str
) -> None:
    recipe.write_text(content)
    before = set(tmp_path.rglob("*"))
    refused(run("compress", tiny("llama"), "--recipe", recipe, "--out", tmp_path / "out"), message, tmp_path, before)


def test_a_recipe_that_is_not_there_is_one_line(run: Run, tiny: Tiny, tmp_path: Path) -> None:
    done = run("compress", tiny("llama"), "--recipe", tmp_path / "none.yaml", "--out", tmp_path / "out")
    refused(done, "none.yaml cannot be read", tmp_path, set())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--max-drop", "little"), "--budget 'little' is no fraction; write 1% or 0.01"),
        (("--max-drop", "200%"), "max_drop=2.0 must be a fraction from 0 up to 1"),
        (("--max-drop", "nan"), "max_drop=nan must be a fraction"),
        (("--max-drop", "-1%"), "max_drop=-0.01 must be a fraction"),
        (("--confidence", "100%"), "confidence=1.0 must be from 0.5 up to 1"),
        (("--target", "tpu"), "tpu"),
        (("--prefer", "beauty"), "'beauty' is none of size, latency, both"),
        (("--max-drop", "0.01%"), "examples are too few to certify a drop of 0.01% at 95% confidence; at least"),
    ],
)
def test_a_bad_budget_is_one_line(
    run: Run, module: Path, arrays: Path, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    before = set(tmp_path.rglob("*"))
    done = run("optimize", module, "--data", arrays, "--out", tmp_path / "out", *options)
    refused(done, message, tmp_path, before)


def test_too_little_text_says_how_much_is_needed(run: Run, tiny: Tiny, text: Path, tmp_path: Path) -> None:
    text.write_text(text.read_text()[:1000])
    before = set(tmp_path.rglob("*"))
    options = ("--data", text, "--length", 16, "--out", tmp_path / "out")
    refused(run("optimize", tiny("llama"), *options), "at least 40 are needed, of which 20 certify", tmp_path, before)
    text.write_text("Once upon a time")
    refused(run("optimize", tiny("llama"), *options), "are too few for one window of 16", tmp_path, before)


@pytest.mark.parametrize(
    ("content", "message"), [(b"\xff\xfe\x00", "text.txt cannot be read as text"), (None, "text.txt cannot be read")]
)
def test_a_text_that_is_none_is_one_line(
    run: Run, tiny: Tiny, text: Path, tmp_path: Path, content: bytes | None, message: str
) -> None:
    text.unlink() if content is None else text.write_bytes(content)
    before = set(tmp_path.rglob("*"))
    refused(run("evaluate", tiny("llama"), "--data", text, "--length", 16), message, tmp_path, before)


X, Y = np.ones((8, 32), np.float32), np.arange(8) % 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"x": X}, "is no .npz file with arrays x and y"),
        ({"x": np.array([{}] * 8), "y": Y}, "is no .npz file with arrays x and y"),
        ({"x": X, "y": np.array(["a"] * 8)}, "is no .npz file with arrays x and y"),
        ({"x": X, "y": Y[:5]}, "x is [8, 32] and y is [5]; y needs one class for each example"),
        ({"x": X[:, :7], "y": Y}, "x is [8, 7], and the model takes [-1, 32], -1 being any number"),
        ({"z": X, "y": Y}, "beside y it has z, and the model takes input"),
        (b"not zipped", "is no .npz file with arrays x and y"),
        (None, "is no .npz file with arrays x and y"),
    ],
    ids=["no y", "objects", "words", "uneven", "narrow", "other names", "no npz", "no file"],
)
def test_arrays_that_are_none_are_one_line(run: Run, module: Path, tmp_path: Path, content: Any, message: str) -> None:
    file = tmp_path / "bad.npz"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        np.savez(file, **content)
    before = set(tmp_path.rglob("*"))
    refused(run("evaluate", module, "--data", file), message, tmp_path, before)


@pytest.mark.parametrize("verb", ["compress", "optimize"])
def test_a_folder_that_exists_is_refused(
    run: Run, tiny: Tiny, recipe: Path, text: Path, tmp_path: Path, verb: str
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    before = set(tmp_path.rglob("*"))
    done = run(verb, tiny("llama"), *VERBS[verb](text, recipe, out))
    refused(done, "exists already; remove it or choose another name", tmp_path, before)


def test_a_module_that_does_not_say_what_goes_in_is_not_served(run: Run, tmp_path: Path) -> None:
    from lissom import save

    folder = save(nn.Sequential(nn.Linear(2, 2)), tmp_path / "module")
    before = set(tmp_path.rglob("*"))
    for verb in ("serve", "bench"):
        refused(run(verb, folder), "save it with example=a batch", tmp_path, before)


def test_a_draft_guesses_for_language_models_only(run: Run, module: Path, tmp_path: Path) -> None:
    before = set(tmp_path.rglob("*"))
    refused(run("serve", module, "--draft", module, "--port", 0), "leave it out", tmp_path, before)


def test_a_draft_must_be_a_language_model(run: Run, tiny: Tiny, module: Path, tmp_path: Path) -> None:
    before = set(tmp_path.rglob("*"))
    refused(run("serve", tiny("llama"), "--draft", module, "--port", 0), "is no language model", tmp_path, before)


def test_beyond_this_machine_only_with_a_key(run: Run, module: Path, tmp_path: Path) -> None:
    before = set(tmp_path.rglob("*"))
    refused(run("serve", module, "--host", "0.0.0.0", "--port", 0), "key", tmp_path, before)


def test_a_port_in_use_is_one_line(run: Run, module: Path, tmp_path: Path) -> None:
    before = set(tmp_path.rglob("*"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused(run("serve", module, "--port", port), str(port), tmp_path, before)


def small_files() -> None:
    """No file may grow beyond 100 kB, as on a disk that is full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


def test_a_full_disk_is_one_line(tiny: Tiny, recipe: Path, tmp_path: Path, root: Path) -> None:
    before = set(tmp_path.rglob("*"))
    command = [sys.executable, "-c", "from lissom.cli import main; main()", "compress", str(tiny("llama"))]
    ended = subprocess.run(
        [*command, "--recipe", str(recipe), "--out", str(tmp_path / "out")],
        cwd=root, preexec_fn=small_files, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    done = SimpleNamespace(code=ended.returncode, out=ended.stdout, error=ended.stderr)
    refused(done, "cannot be written", tmp_path, before)


@pytest.mark.parametrize("verb", ["compress", "optimize"])
def test_a_program_reads_the_mistake_where_it_reads_everything(
    run: Run, text: Path, recipe: Path, tmp_path: Path, verb: str
) -> None:
    done = run(verb, tmp_path / "nothing", *VERBS[verb](text, recipe, tmp_path / "out"), "--json")
    assert done.code == 2
    first, error = map(json.loads, done.lines)
    assert first["stage"] == "read"
    assert error == {"event": "error", "message": done.error.removeprefix("lissom: ").removesuffix("\n")}
