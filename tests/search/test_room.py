"""The memory of a search: foreseen first, then kept."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lissom.errors import DataError
from lissom.evaluate import metric
from lissom.formats.dense import WIDENED
from lissom.models import Checkpoint
from lissom.progress import Progress
from lissom.search import room
from lissom.search.forms import forms_of
from lissom.search.room import at_once, foreseen, lots_of, within
from lissom.search.split import Split

RUN = """
import dataclasses, gc, json, sys
from pathlib import Path
import torch
from lissom.evaluate import metric
from lissom.search import room
from lissom.search.split import Split
from lissom.search.language import LanguageSubject
from lissom.search.yardstick import Yardstick

torch.set_num_threads(1)
room.LATER = 0
windows = torch.randint(2048, (4, 16))
lots = Split(calibration=windows, selection=windows, certification=windows, outputs=windows)
found = {}


class AsItIs:  # in the place of a bank
    def recipe(self, choice, name):
        from lissom.types import Recipe
        return Recipe(name=name)

    by_layer = recipe

    def weight(self, layer, form):
        return None


class Forms(dict):
    def __missing__(self, layer):
        return "as it is"


AsItIs.by_layer = lambda self, choice: Forms()


def measured(subject, phase, act, wanted):
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    held = act()
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    found[phase] = [int(peak.split()[1]) * 1024, wanted]
    return held


for folder in sys.argv[1:]:  # the first one brings in all that is imported
    subject = LanguageSubject(folder, torch.device("cpu"))
    kind = dataclasses.replace(metric("perplexity"), tokens=16)
    told = list(room.foreseen(subject.checkpoint, subject.forms, 1, lots, [kind], None))[-1].phases
    scores = lambda: Yardstick(subject.original, windows, [kind])
    measured(subject, "comparing", scores, told["comparing"])
    run = subject.timed()
    run()
    make = lambda: subject.assemble(AsItIs(), {}, "")
    trial = measured(subject, "putting a candidate together", make, told["putting a candidate together"])
    both = lambda: trial.timed()()
    measured(subject, "timing", both, told["timing a candidate beside the original"])
    del run, trial
print(json.dumps(found))
"""


def wide_checkpoint(folder: Path, entries: int) -> int:
    """A random Llama of one small block and an embedding of so many entries of 512; its weights."""
    sizes = {"hidden_size": 512, "intermediate_size": 512, "num_hidden_layers": 1, "vocab_size": entries}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64, "max_position_embeddings": 256}
    config = {"model_type": "llama", "tie_word_embeddings": True, "dtype": "bfloat16", **sizes, **heads}
    (folder / "config.json").write_text(json.dumps(config))
    rows = {f"self_attn.{part}_proj": rows for part, rows in zip("qkvo", (512, 256, 256, 512), strict=True)}
    rows |= {f"mlp.{part}_proj": 512 for part in ("gate", "up", "down")}
    tensors = {f"model.layers.0.{name}.weight": torch.randn(o, 512) * 0.02 for name, o in rows.items()}
    norms = ("layers.0.input_layernorm", "layers.0.post_attention_layernorm", "norm")
    tensors |= {f"model.{name}.weight": torch.ones(512) for name in norms}
    tensors["model.embed_tokens.weight"] = torch.randn(1, 512).expand(entries, 512)
    save_file({name: t.bfloat16().clone() for name, t in tensors.items()}, folder / "model.safetensors")
    return sum(tensor.numel() for tensor in tensors.values())


@pytest.mark.skipif(
    sys.platform != "linux", reason="elsewhere the peak of a process is not told apart from its parent's"
)
def test_each_phase_stays_below_what_is_foreseen(tmp_path: Path, demo_folder: Path) -> None:
    """Of a checkpoint nearly all of which is an embedding; opened in float32 it alone would take more."""
    folders = [tmp_path / name for name in ("small", "large")]
    for folder, entries in zip(folders, (2048, 120_000), strict=True):
        folder.mkdir()
        weights = wide_checkpoint(folder, entries)
        for file in demo_folder.glob("tokenizer*"):
            (folder / file.name).write_bytes(file.read_bytes())
    command = [sys.executable, "-c", RUN, *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-800:]
    found = json.loads(done.stdout)
    assert set(found) == {"comparing", "putting a candidate together", "timing"}
    for phase, (peak, bound) in found.items():
        assert peak <= bound, phase
    program = found["comparing"][1] - int(room.OPENED * weights) - room.ENGINE - 3 * 16 * 4 * 120_000 - 4 * WIDENED
    assert found["comparing"][0] < program + 4 * weights


def test_fewer_tokens_then_no_way(tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "resident", lambda: 1000)
    monkeypatch.setattr(room, "LATER", 0)
    monkeypatch.setattr("lissom.compress.ram.resident", lambda: -(10**9))  # so that calibrating is not what counts
    checkpoint, windows = Checkpoint(tiny("llama")), torch.randint(2048, (8, 32))
    lots = Split(calibration=windows, selection=windows, certification=windows, outputs=windows)
    forms = {"model.embed_tokens": forms_of(checkpoint.skeleton().model.embed_tokens, language=True)}
    kind = dataclasses.replace(metric("perplexity"), tokens=64)
    stored, weights = room.sizes(checkpoint, checkpoint.names)
    ways = list(foreseen(checkpoint, forms, 1, lots, [kind], None))
    assert [way.tokens for way in ways] == [64, 32] == lots_of(64, 32)
    candidate, logits = max(stored, int(room.OPENED * weights)), 4 * 2048
    assert ways[1].phases["comparing"] == 1000 + candidate + room.ENGINE + (32 + 2 * 32) * logits + 4 * WIDENED
    assert ways[1].phases["timing a candidate beside the original"] == 1000 + stored + candidate + 2 * room.ENGINE
    between = list(foreseen(checkpoint, forms, 1, lots, [dataclasses.replace(metric("kl"), tokens=32)], None))
    assert between[0].phases["comparing"] == 1000 + candidate + room.ENGINE + stored + 4 * 32 * logits + 4 * WIDENED
    said: list[Progress] = []

    def asked(bound: int | None) -> int | None:
        return within(checkpoint, forms, 1, lots, [kind], bound, said.append)

    assert [asked(way.peak) for way in ways] == [64, 32]
    assert asked(None) is None
    assert at_once(kind, 32).tokens == 32
    assert at_once(metric("accuracy"), 32) is metric("accuracy")
    assert all("memory: at most" in event.text and "minutes" in event.text for event in said)
    with pytest.raises(DataError, match=r"max-ram: .* are too few, .* MB for comparing, .*give that much"):
        within(checkpoint, forms, 1, lots, [kind], ways[-1].peak - 1, said.append)
