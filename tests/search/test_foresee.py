"""A language model on disk foreseen part by part, as in memory; and what is remembered."""

import gc
import json
import shutil
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lissom.artifact import fingerprint as fingerprints
from lissom.artifact import open_folder
from lissom.calibrate.spill import Spill
from lissom.compress import ram
from lissom.compress.plan import Phase
from lissom.errors import DataError, RecipeError
from lissom.models import Checkpoint
from lissom.search import foresee
from lissom.search.foresee import fingerprint, foreseen, streamed
from lissom.search.mixed import candidates_for
from lissom.search.sensitivity import Found, sensitivity
from lissom.types import Step

BLOCKS = [{"technique": "rtn", "bits": bits, "group": 16} for bits in (2, 4, 8)]
ENDS = [{"technique": "rtn", "bits": bits} for bits in (4, 8)]
HEARD = {"technique": "yaqa", "bits": 3, "group": 16}
# 1,024 rows of a block's layers, of a tied head and twice that to judge with; of a block what YAQA reads.
FISHERS = 3 * 32**2 + 2 * 16**2 + 2 * 64**2
HEARD_BYTES = 1024 * (2 * 64 + 2 * 48 + 3 * 96 + 3 * (32 + 2048) + 14) + FISHERS
MANY = [{"technique": "gptq", "bits": 3, "group": 16}, {"technique": "wanda"}, HEARD]


def assert_same_as_in_memory(folder: Path, windows: Tensor, blocks: list[Any], ends: list[Any], rel: float) -> None:
    checkpoint = Checkpoint(folder)
    candidates = candidates_for(checkpoint, blocks, ends)
    found = foreseen(checkpoint, windows, candidates)
    floats = checkpoint.tensor("model.norm.weight").dtype
    one_by_one = [{"input_ids": window.unsqueeze(0)} for window in windows]
    whole = sensitivity(open_folder(folder).model, one_by_one, candidates, floats=floats)
    assert list(found) == list(whole) == list(candidates)
    for name, options in whole.items():
        for ours, theirs in zip(found[name], options, strict=True):
            assert (ours.steps, ours.nbytes) == (theirs.steps, theirs.nbytes)
            assert (ours.error, ours.kl) == pytest.approx((theirs.error, theirs.kl), rel=rel), name


def test_the_bundled_model_is_foreseen_as_in_memory(demo_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A window at a time both ways: of few tokens, GPTQ makes another choice out of a last bit that differs."""
    monkeypatch.setattr(foresee, "LOT", 1)
    windows = torch.randint(5, 500, (6, 24), generator=torch.Generator().manual_seed(3))
    blocks = [{"technique": technique, "bits": 3, "group": 64} for technique in ("gptq", "rtn")]
    assert_same_as_in_memory(demo_folder, windows, blocks, ENDS, 1e-4)


@pytest.mark.parametrize(("family", "tied"), [("qwen3", True), ("qwen3", False), ("gemma2", True)])
def test_every_statistic_that_a_candidate_reads_is_there(tiny: Callable[..., Path], family: str, tied: bool) -> None:
    windows = torch.randint(2048, (5, 16))
    assert_same_as_in_memory(tiny(family, tied), windows, MANY, ENDS, 1e-3)


def test_of_one_part_nothing_is_left_when_the_next_is_at_work(
    tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[tuple[str, weakref.ref[Tensor]]] = []
    plain = foresee.options

    def watched(name: str, original: Any, tried: Any, uses: Any, *more: Any) -> Found:
        left = {own for own, seen in used if seen() is not None}
        assert all(own.startswith(name.partition(".self")[0].partition(".mlp")[0]) for own in left), (name, left)
        used.append((name, weakref.ref(uses[0].rows.together[1])))
        return plain(name, original, tried, uses, *more)

    monkeypatch.setattr(foresee, "options", watched)
    checkpoint = Checkpoint(tiny("llama"))
    gc.collect()
    found = foreseen(checkpoint, torch.randint(2048, (4, 16)), candidates_for(checkpoint, BLOCKS, ENDS))
    assert len(used) == len(found) == 16


def test_a_bound_is_kept_by_waiting_on_disk_or_refused(
    tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ram, "resident", lambda: 0)
    checkpoint, windows = Checkpoint(tiny("llama", True)), torch.randint(2048, (64, 16))
    model = checkpoint.skeleton()
    candidates = candidates_for(checkpoint, [BLOCKS[0], HEARD], ENDS)
    plan = {name: [step for steps in tried for step in steps] for name, tried in candidates.items()}
    rooms = list(ram.ways_back(checkpoint, model, [Phase(grain="layer", plan=plan, steps=())], (64, 16)))
    assert [(room.batch, room.spilled) for room in rooms] == [(b, s) for s in (False, True) for b in (4, 2, 1)]
    assert rooms[0].heard == 4 * HEARD_BYTES
    assert rooms[3].peak < rooms[0].peak
    plain = foreseen(checkpoint, windows, candidates)
    opened: list[int] = []
    empty = Spill.empty
    monkeypatch.setattr(Spill, "empty", lambda *given: (opened.append(1), empty(*given))[1])
    assert foreseen(checkpoint, windows, candidates, max_ram=rooms[3].peak) == plain
    assert opened
    with pytest.raises(DataError, match=r"max-ram: .* are too few, .* for what is heard of the end loss"):
        foreseen(checkpoint, windows, candidates, max_ram=min(room.peak for room in rooms) - 1)
    with pytest.raises(DataError, match="data: there is not one window"):
        foreseen(checkpoint, windows[:0], candidates)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many candidates each call had to try."""
    asked: list[int] = []

    def count(checkpoint: Checkpoint, windows: Tensor, candidates: Any, *more: Any) -> Iterator[tuple[str, Found]]:
        asked.append(sum(map(len, candidates.values())))
        return streamed(checkpoint, windows, candidates, *more)

    monkeypatch.setattr(foresee, "streamed", count)
    return asked


def test_what_was_found_is_remembered(tiny: Callable[..., Path], tmp_path: Path, counted: list[int]) -> None:
    checkpoint, windows = Checkpoint(tiny("llama", True)), torch.randint(2048, (4, 16))
    few, many = (candidates_for(checkpoint, blocks, ENDS) for blocks in (BLOCKS[:1], BLOCKS))
    first = foreseen(checkpoint, windows, few, cache=tmp_path)
    assert foreseen(checkpoint, windows, few, cache=tmp_path) == first
    assert foreseen(checkpoint, windows, many, cache=tmp_path)["model.embed_tokens"] == first["model.embed_tokens"]
    assert counted == [14 + 2, 28]
    assert [file.suffix for file in tmp_path.iterdir()] == [".json"]
    json.loads(next(tmp_path.iterdir()).read_text())


def test_what_does_not_suit_is_remembered_too(tiny: Callable[..., Path], tmp_path: Path, counted: list[int]) -> None:
    checkpoint, windows = Checkpoint(tiny("llama", True)), torch.randint(2048, (4, 16))
    name, odd = "model.layers.0.mlp.up_proj", (Step.of({**BLOCKS[0], "group": 5}),)
    good = (Step.of(BLOCKS[0]),)
    first = foreseen(checkpoint, windows, {name: [odd, good]}, cache=tmp_path)
    assert [option.steps for option in first[name]] == [good]
    assert foreseen(checkpoint, windows, {name: [odd, good]}, cache=tmp_path) == first
    for _ in range(2):
        with pytest.raises(RecipeError, match=r"rtn: group=5 does not divide .* of model.layers.0.mlp.up_proj"):
            foreseen(checkpoint, windows, {name: [odd]}, cache=tmp_path)
    assert counted == [2]


def test_whatever_decides_on_the_figures_is_noticed(
    tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, windows = Checkpoint(tiny("llama", True)), torch.randint(2048, (4, 16))
    original = fingerprint(checkpoint, windows)
    other = windows.clone()
    other[3, 15] ^= 1
    found = {original, fingerprint(checkpoint, windows[:3]), fingerprint(checkpoint, other)}
    found.add(fingerprint(checkpoint, windows.reshape(8, 8)))
    found.add(fingerprint(Checkpoint(tiny("llama")), windows))
    copied = tmp_path / "package"
    shutil.copytree(fingerprints.PACKAGE / "search", copied)
    monkeypatch.setattr(fingerprints, "PACKAGE", copied)
    found.add(fingerprint(checkpoint, windows))
    with (copied / "foresee.py").open("a") as code:
        code.write("# changed")
    found.add(fingerprint(checkpoint, windows))
    assert len(found) == 7
    monkeypatch.undo()
    assert fingerprint(checkpoint, windows) == original
