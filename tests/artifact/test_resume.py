"""Who is stopped while a language model is compressed, however and wherever, gets the same folder by the same call."""

import hashlib
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from lissom.artifact import compress_checkpoint, language, read_manifest
from lissom.compress import stream
from lissom.progress import Progress, Tell, quiet
from lissom.types import Recipe

Tiny = Callable[..., Path]
WINDOWS = torch.randint(2048, (4, 12), generator=torch.Generator().manual_seed(5))
PARTS = {"model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm", "lm_head"}
EMBEDDING = {"layers": "model.embed_tokens", "technique": "rtn", "bits": 8, "group": 32}
GPTQ = {"layers": "model.layers.*", "technique": "gptq", "bits": 3, "group": 32}
SPARSE = {
    "layers": "*.down_proj",
    "technique": "sparsegpt",
    "sparsity": 0.5,
}  # its values hang on every bit of the data
HEAD = {**SPARSE, "layers": "lm_head"}
ROTATE = {"layers": "*_proj", "technique": "rotate"}
AWQ = {"layers": "*.mlp.*", "technique": "awq", "group": 32}
TUNED = {"layers": "model.layers.*", "technique": "tuned", "iterations": 3}
RECIPES: dict[str, list[dict[str, Any]]] = {
    "layers": [EMBEDDING, GPTQ, HEAD],
    "couplings": [ROTATE, AWQ, SPARSE, HEAD],
    "shapes": [{"layers": "model.layers.*", "technique": "heads"}, EMBEDDING, {"technique": "channels"}, GPTQ],
    "blocks": [EMBEDDING, {**GPTQ, "layers": "*.self_attn.*"}, {**SPARSE, "layers": "*.mlp.*"}, TUNED, HEAD],
    "heard": [EMBEDDING, GPTQ | {"guided": True}, {"layers": "*.v_proj", "technique": "yaqa", "group": 0}],
    "turned": [{"technique": "rotate_stream"}, GPTQ],
    "whole": [{"technique": "blocks", "sparsity": 0.5}, GPTQ],
}


def hashes(out: Path) -> dict[str, str]:
    """The hash of every file of a folder, which is what its manifest says."""
    read_manifest(out)
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in out.iterdir()}


class Stopped(BaseException):
    """As a program is stopped: not an error that anybody would catch."""


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", RECIPES)
def test_who_is_stopped_after_any_part_gets_the_same_folder(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, stored: torch.dtype
) -> None:
    source, recipe = tmp_path / "in", Recipe.of(RECIPES[name])
    AutoModelForCausalLM.from_pretrained(tiny("llama"), dtype=stored).save_pretrained(source)
    acted: list[str] = []
    plain = stream.act_on

    def counted(own: Any, plan: Any, part: str, module: Any) -> None:
        acted.append(part)
        plain(own, plan, part, module)

    def run(out: str, told: Tell = quiet) -> Path:
        acted.clear()
        return compress_checkpoint(source, recipe, WINDOWS, tmp_path / out, entropy_coding="deflate", progress=told)

    monkeypatch.setattr(stream, "act_on", counted)
    told: list[str] = []
    expected = hashes(run("whole", lambda event: told.append(str(event))))
    parts, whole = tuple(told), name == "whole"  # what must see everything begins anew
    assert set(parts) == PARTS - ({"model.layers.1"} if whole else set())
    for number, part in enumerate(parts):

        def stop(event: Progress, last: str = part) -> None:
            told.append(str(event))
            if str(event) == last:
                raise Stopped

        told.clear()
        with pytest.raises(Stopped):
            run("out", stop)
        assert sorted(file.name for file in tmp_path.iterdir()) == [".out.work", "in", "whole"]
        assert told == list(parts[0 if whole else number : number + 1])
        assert acted == ([] if whole else [part])
    assert hashes(run("out")) == expected
    assert acted == []
    assert sorted(file.name for file in tmp_path.iterdir()) == ["in", "out", "whole"]


@pytest.mark.parametrize("place", ["carry", "write_json", "write_manifest"])
def test_who_is_stopped_while_the_folder_is_completed_gets_it_too(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    recipe, plain = Recipe.of(RECIPES["layers"]), getattr(language, place)

    def stop(*given: Any) -> None:
        plain(*given)
        raise Stopped

    expected = hashes(compress_checkpoint(tiny("llama"), recipe, WINDOWS, tmp_path / "whole"))
    monkeypatch.setattr(language, place, stop)
    with pytest.raises(Stopped):
        compress_checkpoint(tiny("llama"), recipe, WINDOWS, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    assert hashes(compress_checkpoint(tiny("llama"), recipe, WINDOWS, tmp_path / "out")) == expected


STEPS = [
    {"layers": "model.embed_tokens", "technique": "rtn", "bits": 8, "group": 64},
    {"layers": "model.layers.*", "technique": "channels", "sparsity": 0.25},
    {"layers": "model.layers.*", "technique": "gptq", "bits": 3, "group": 64},
]
CHILD = f"""
import sys
import torch
from lissom.artifact import compress_checkpoint
from lissom.types import Recipe

windows = torch.randint(2048, (32, 64), generator=torch.Generator().manual_seed(5))
print("begun", flush=True)
compress_checkpoint(
    sys.argv[1], Recipe.of({STEPS}), windows, sys.argv[2], progress=lambda part: print(part, flush=True)
)
"""


def child(*given: Path) -> subprocess.Popen[str]:
    """A process that compresses, and that has just begun to."""
    process = subprocess.Popen([sys.executable, "-c", CHILD, *given], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    return process


def test_a_process_killed_at_random_moments_comes_to_the_same_bytes(demo_folder: Path, tmp_path: Path) -> None:
    whole = child(demo_folder, tmp_path / "whole")
    begun = time.monotonic()
    assert len(whole.communicate()[0].split()) == 6
    takes, told, kills = time.monotonic() - begun, list[str](), 0
    for _ in range(4):
        process = child(demo_folder, tmp_path / "out")
        time.sleep(random.uniform(0, takes / 2))
        process.kill()
        told += process.communicate()[0].split()
        kills += process.returncode == -signal.SIGKILL
    if not (tmp_path / "out").exists():
        windows = torch.randint(2048, (32, 64), generator=torch.Generator().manual_seed(5))
        compress_checkpoint(
            demo_folder, Recipe.of(STEPS), windows, tmp_path / "out", progress=lambda part: told.append(str(part))
        )
    assert kills > 0
    assert sorted(told) == sorted(set(told))  # no part that was there was made again
    assert hashes(tmp_path / "out") == hashes(tmp_path / "whole")
