"""The memory contract: foreseen first, then kept."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lissom.artifact import compress_checkpoint
from lissom.artifact.tensors import read_tensors
from lissom.calibrate.spill import Spill, joined
from lissom.compress import ram
from lissom.compress.plan import phases
from lissom.compress.ram import Room, room_for, ways
from lissom.compress.stream import layer_names
from lissom.errors import DataError
from lissom.models import Checkpoint
from lissom.types import Recipe

GPTQ = Recipe.of([{"layers": "model.layers.*", "technique": "gptq", "bits": 4, "group": 16}])
YAQA = Recipe.of([{"layers": "model.layers.*", "technique": "yaqa", "bits": 4, "group": 16}])
RUN = """
import json, sys
import torch
from pathlib import Path
from lissom.artifact import compress_checkpoint
from lissom.compress.ram import resident
from lissom.types import Recipe

torch.set_num_threads(1)
small, large, out, more, layers, technique = sys.argv[1:]
recipe = Recipe.of([
    {"layers": "model.layers.*", "technique": "rtn", "bits": 4, "group": 32, "clip": False},
    {"layers": layers, "technique": technique, "bits": 4, "group": 32, "clip": False},
])
windows = torch.randint(1000, (8, 64))
compress_checkpoint(small, recipe, windows, Path(out) / "small")  # everything that is imported is in memory now
bound = resident() + int(more)
compress_checkpoint(large, recipe, windows, Path(out) / "large", max_ram=bound)
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(json.dumps({"bound": bound, "peak": int(peak.split()[1]) * 1024}))
"""


def large_checkpoint(folder: Path, blocks: int) -> int:
    """A random Llama of so many blocks of 6 MB each, written without ever being a model; its bytes."""
    sizes = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": blocks, "vocab_size": 2048}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64, "max_position_embeddings": 256}
    config = {"model_type": "llama", "tie_word_embeddings": True, **sizes, **heads}
    (folder / "config.json").write_text(json.dumps(config))
    shapes = {"mlp.gate_proj": (1536, 512), "mlp.up_proj": (1536, 512), "mlp.down_proj": (512, 1536)}
    shapes |= {f"self_attn.{part}_proj": (rows, 512) for part, rows in zip("qkvo", (512, 256, 256, 512), strict=True)}
    tensors = {"model.embed_tokens.weight": torch.randn(2048, 512), "model.norm.weight": torch.ones(512)}
    drawn = {name: torch.randn(shape) * 0.02 for name, shape in shapes.items()}
    for block in range(blocks):
        own = {name: values.roll(block, 1) for name, values in drawn.items()}
        own |= dict.fromkeys(("input_layernorm", "post_attention_layernorm"), torch.ones(512))
        tensors |= {f"model.layers.{block}.{name}.weight": values for name, values in own.items()}
    save_file({name: t.bfloat16().clone() for name, t in tensors.items()}, folder / "model.safetensors")
    return (folder / "model.safetensors").stat().st_size


@pytest.mark.skipif(
    sys.platform != "linux", reason="elsewhere the peak of a process is not told apart from its parent's"
)
@pytest.mark.parametrize(
    ("layers", "technique"), [("model.layers.0.mlp.*", "gptq"), ("model.layers.*.self_attn.q_proj", "yaqa")]
)
def test_the_peak_stays_below_a_bound_that_the_checkpoint_does_not_fit(
    tiny: Callable[..., Path], tmp_path: Path, layers: str, technique: str
) -> None:
    """YAQA is to keep 26 Fisher matrices of 1 MB, and the inputs of all blocks."""
    size = large_checkpoint(tmp_path, 26)
    more = 150_000_000  # beyond what the program takes by itself
    assert more < size
    folders = [str(tiny("llama", True)), str(tmp_path), str(tmp_path)]
    command = [sys.executable, "-c", RUN, *folders, str(more), layers, technique]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-800:]
    found = json.loads(done.stdout)
    assert found["peak"] <= found["bound"]


def rooms(folder: Path, windows: tuple[int, int], recipe: Recipe = GPTQ) -> list[Room]:
    checkpoint = Checkpoint(folder)
    model = checkpoint.skeleton()
    return list(ways(checkpoint, model, phases(recipe, layer_names(checkpoint, model)), windows))


def test_fewer_windows_at_a_time_then_the_disk(tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ram, "resident", lambda: 1000)
    found = rooms(tiny("llama"), (64, 32))
    assert [(room.batch, room.spilled) for room in found] == [(b, s) for s in (False, True) for b in (4, 2, 1)]
    assert sorted((room.peak for room in found), reverse=True)[0] == found[0].peak
    assert found[2].peak < found[0].peak
    assert found[5].hidden == 2 * 32 * 32 * 4
    checkpoint = Checkpoint(tiny("llama"))
    model = checkpoint.skeleton()
    plan = phases(GPTQ, layer_names(checkpoint, model))
    for room in found:
        assert room_for(checkpoint, model, plan, (64, 32), room.peak).peak <= room.peak
    assert room_for(checkpoint, model, plan, (64, 32), found[0].peak) == found[0]
    least = min(room.peak for room in found)
    with pytest.raises(DataError, match=r"max-ram: .* are too few, .* for the largest part .* shorter windows"):
        room_for(checkpoint, model, plan, (64, 32), least - 1)


def test_without_a_bound_it_is_the_fastest_way(tiny: Callable[..., Path]) -> None:
    checkpoint = Checkpoint(tiny("llama"))
    model = checkpoint.skeleton()
    room = room_for(checkpoint, model, phases(GPTQ, layer_names(checkpoint, model)), (64, 32), None)
    assert (room.batch, room.spilled) == (4, False)


def test_every_item_is_in_the_sum(tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand, for the widest part of the tiny model: its untied head of 2048 by 32, and blocks with 7 Grams."""
    monkeypatch.setattr(ram, "resident", lambda: 0)
    without = rooms(tiny("llama", True), (0, 32), Recipe())[0]
    assert without.embedding == without.hidden == 0
    assert without.part == 2048 * 32 * 4
    heard = Recipe.of([{"layers": "model.layers.*", "technique": "yaqa", "bits": 4, "group": 16}])
    assert rooms(tiny("llama", True), (8, 32), heard)[0].embedding == 2048 * 32 * 4
    block = 32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 64
    checkpoint = Checkpoint(tiny("llama", True))
    model = checkpoint.skeleton()
    plan = phases(GPTQ, layer_names(checkpoint, model))
    grams = 6 * 32**2 + 64**2 + 3 * 64**2
    found = ram.part_bytes(checkpoint, model, plan, "model.layers.0", 100)
    assert found == 4 * (2 * block + 6 * 32 * 64 + grams + 100 * 3 * 96)
    narrow = ram.part_bytes(checkpoint, model, plan, "model.layers.0", 100, 2)
    assert narrow == 2 * (2 * block + 6 * 32**2 + 64**2) + 4 * (6 * 32 * 64 + grams + 100 * 3 * 96)
    assert found == ram.part_bytes(checkpoint, model, plan, "model.layers.0", 100, t=50)
    bent = Checkpoint(tiny("gemma2"))  # whose attention makes all its scores: of 4 heads, 4 copies
    scores = ram.part_bytes(bent, bent.skeleton(), plan, "model.layers.0", 100, t=50) - found
    assert scores == 4 * 100 * (4 * 4 * 50 - 3 * 96)
    tuned = Recipe.of([*GPTQ.as_dict()["steps"], {"layers": "model.layers.*", "technique": "tuned"}])
    found = [rooms(tiny("llama"), (8, 32), recipe)[0] for recipe in (GPTQ, tuned)]
    assert [room.hidden for room in found] == [copies * 8 * 32 * 32 * 4 for copies in (2, 4)]
    assert [room.batch for room in found] == [4, 8]


def test_what_is_heard_is_in_the_sum(tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: Fisher matrices of the outputs of all layers, or of one block where they wait on disk."""
    monkeypatch.setattr(ram, "resident", lambda: 0)
    found = rooms(tiny("llama", True), (64, 32), YAQA)
    block = 4 * 32**2 - 2 * (32**2 - 16**2) + 2 * 64**2 + 32**2
    rows = 14 * 64 * 32
    assert found[0].heard == 4 * (2 * block + rows)
    assert found[3].heard == 4 * (block + rows)
    weights, left = (
        32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 64,
        (6 * 32 + 64) + 4 * (2 * 32 + 2 * 16 + 2 * 64 + 32) + 16 * 32,
    )
    head = 6 * 32 * 2048
    assert found[0].back == 4 * (5 * 64 * 32 * 32 + max(weights + 4 * 32 * left, head))
    assert found[5].back == 4 * (4 * 32 * 32 + max(weights + 32 * left, head))
    for room in found:
        assert room.peak == room.embedding + room.heard + max(room.hidden + room.part, room.back)
    blind = rooms(tiny("llama", True), (64, 32))
    assert (blind[0].heard, blind[0].back) == (0, 0)
    assert rooms(tiny("llama", True), (0, 32), YAQA)[0].heard == 0
    guided = Recipe.of([{**GPTQ.as_dict()["steps"][0], "guided": True}])
    assert rooms(tiny("llama", True), (64, 32), guided)[0].part == blind[0].part
    checkpoint = Checkpoint(tiny("llama", True))
    model = checkpoint.skeleton()
    with pytest.raises(DataError, match=r"for what is heard of the end loss, .* for the largest part on the way back"):
        room_for(checkpoint, model, phases(YAQA, layer_names(checkpoint, model)), (64, 32), 1)


def test_every_block_is_in_the_sum(tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ram, "resident", lambda: 0)
    last = Recipe.of([{"layers": "model.layers.1.*", "technique": "gptq", "group": 16}])
    large = (64, 512)  # so that no other part is larger than a block
    assert rooms(tiny("llama", True), large, last)[0].part == rooms(tiny("llama", True), large)[0].part


@pytest.mark.parametrize("recipe", [GPTQ, YAQA], ids=["gptq", "yaqa"])
def test_what_waits_on_disk_comes_out_the_same(
    tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: Recipe
) -> None:
    windows = torch.randint(2048, (5, 16))
    compress_checkpoint(tiny("qwen3"), recipe, windows, tmp_path / "memory")
    monkeypatch.setattr("lissom.compress.stream.room_for", lambda *given: Room(batch=8, spilled=True))
    compress_checkpoint(tiny("qwen3"), recipe, windows, tmp_path / "disk", max_ram=1)
    memory, disk = (read_tensors(tmp_path / name) for name in ("memory", "disk"))
    assert set(memory) == set(disk)
    assert all(torch.equal(tensor, disk[name]) for name, tensor in memory.items())


def test_lots_are_joined_in_order_and_survive_being_forgotten() -> None:
    spill, lots = Spill(), [torch.randn(2, 3, 4), torch.randn(2, 3, 4), torch.randn(1, 3, 4)]
    found = joined(iter(lots), 5, spill)
    spill.forget()
    assert torch.equal(found, torch.cat(lots))
    found[0] += 1
    spill.forget()
    assert torch.equal(found[0], lots[0][0] + 1)
    assert torch.equal(joined(iter(lots), 5), torch.cat(lots))


def test_a_full_disk_is_told_before_anything_is_written_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int, nbytes: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lissom.calibrate.spill.reserve", full)
    with pytest.raises(DataError, match=r"0\.04 GB of hidden states do not fit .* \(No space left on device\)"):
        Spill().empty((1000, 10000), torch.float32)


def test_a_bound_that_cannot_be_kept_is_refused_before_anything_is_written(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="MB are too few"):
        compress_checkpoint(tiny("llama"), GPTQ, torch.randint(2048, (4, 16)), tmp_path / "out", max_ram=50_000_000)
    assert not (tmp_path / "out").exists()
