"""Plans: of real folders and on paper, up to a trillion weights and ten thousand devices."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

import lissom
from lissom.artifact.manifest import MANIFEST
from lissom.errors import RecipeError
from lissom.plan import DEVICES, Shapes, plan_devices
from lissom.plan.device import read_link
from lissom.plan.measured import Measured, at, line, width_of
from lissom.plan.reading import read_shapes

Tiny = Callable[..., Path]
TRILLION = Shapes(blocks=128, hidden=25600, heads=160, kv_heads=20, head_dim=160, inner=83200, vocabulary=128000)
MANY: dict[str, Any] = {"devices": 10_000, "device": "h200", "link": "50GB/s", "node": 8, "batch": 10_000}
FAMILIES = ("llama", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "qwen3_moe", "smollm3")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
def test_matrices_are_counted_as_the_model_has_them(tiny: Tiny, family: str, tied: bool) -> None:
    from lissom.models import Checkpoint

    folder = tiny(family, tied)
    shapes, model = read_shapes(folder), Checkpoint(folder).skeleton()
    assert shapes.weights == sum(p.numel() for p in model.parameters() if p.dim() > 1)
    assert shapes.nbytes == pytest.approx(4 * shapes.weights)  # the random numbers of these folders are float32


def test_a_config_is_enough(tmp_path: Path, demo_folder: Path) -> None:
    (tmp_path / "config.json").write_text((demo_folder / "config.json").read_text())
    assert read_shapes(tmp_path) == read_shapes(demo_folder)
    assert read_shapes(tmp_path, 3).bits == 3
    with pytest.raises(RecipeError, match="give more than 0 and at most 32"):
        read_shapes(tmp_path, 64)


def test_bits_are_those_of_an_artifact(tmp_path: Path, demo_folder: Path) -> None:
    steps = [{"layers": "model.layers.*", "technique": "rtn", "bits": 4, "group": 64}]
    out = lissom.compress_checkpoint(
        demo_folder, lissom.Recipe.of(steps), torch.empty(0, 8, dtype=torch.long), tmp_path / "out"
    )
    shapes = read_shapes(out)
    assert 4 < shapes.bits < 4.6  # codes, scales and zeros
    assert shapes.end_bits == 16


@pytest.mark.parametrize("purpose", ["recover", "serve"])
def test_a_trillion_weights_on_ten_thousand_devices(purpose: str) -> None:
    assert TRILLION.weights == pytest.approx(1e12, rel=0.02)
    assert TRILLION.nbytes == 2 * TRILLION.weights
    said: dict[str, Any] = {"original": "split", "checkpointing": True} if purpose == "recover" else {}
    begun = time.process_time()
    plan = plan_devices(TRILLION, purpose=purpose, length=4096, bits=4, **said, **MANY)
    assert time.process_time() - begun < 60
    for one in plan.ranked:
        assert one.split.devices == 10_000
        assert one.nbytes <= DEVICES["h200"].usable
        assert one.seconds >= one.roofline
    assert plan.best.seconds <= min(one.seconds for one in plan.ranked) or purpose == "serve"
    assert sum(plan.left_out.values()) + len(plan.ranked) == 35 * 35  # ways to divide 2⁴ 5⁴ over four axes


def test_all_shards_together_hold_the_whole_model() -> None:
    plan = plan_devices(TRILLION, length=4096, original="split", checkpointing=True, **MANY)
    for one in plan.ranked:
        parts = one.split.shard * one.split.tensor * one.split.pipeline
        if TRILLION.blocks % one.split.pipeline == 0:
            assert one.memory["parameters"] * parts >= 4 * TRILLION.weights
            blocks = TRILLION.blocks * TRILLION.block_weights
            assert one.memory["moving"] * parts >= 28 * blocks * (1 + 1 / 64) * (1 - 1e-9)  # stages may be uneven


def test_where_nothing_fits_it_says_what_takes_the_most() -> None:
    with pytest.raises(RecipeError, match="GB are for original; take original=split, or remembered"):
        plan_devices(TRILLION, length=4096, **MANY)
    with pytest.raises(RecipeError, match="does not divide a batch of 1"):
        plan_devices(replace(TRILLION, heads=7, kv_heads=7, blocks=1), **{**MANY, "devices": 8, "batch": 1})


def test_what_shards_cannot_do_is_left_out() -> None:
    shapes = Shapes(blocks=4, hidden=64, heads=4, kv_heads=2, head_dim=16, inner=128, vocabulary=256)
    usual: dict[str, Any] = {"devices": 4, "device": "h200", "batch": 64}
    for asked in ({"optimizer": "adamw8"}, {"gradients": "int8"}):
        plan = plan_devices(shapes, **usual, **asked)
        assert {one.split.shard for one in plan.ranked} == {1}
        assert len(plan.ranked) == (1 if "optimizer" in asked else 5)
        assert any(own in reason for own in ("whole matrices", "few bits") for reason in plan.left_out)
    assert any("2 heads of keys and values, which stay whole" in reason for reason in plan.left_out)


def test_what_is_of_recovery_is_refused_elsewhere() -> None:
    for asked in ({"optimizer": "lion"}, {"checkpointing": True}):
        with pytest.raises(RecipeError, match="serve moves nothing; train, optimizer"):
            plan_devices(TRILLION, devices=8, device="h200", purpose="serve", **asked)  # type: ignore[arg-type]


def test_experts_are_read_where_tokens_come_to_them(tiny: Tiny, tmp_path: Path) -> None:
    shapes = read_shapes(tiny("qwen3_moe"))
    assert (shapes.sparse, shapes.experts, shapes.chosen, shapes.widths) == (1, 3, 2, (64, 32))
    assert shapes.active_weights < shapes.block_weights
    config = AutoConfig.for_model("qwen3_moe", num_experts=128, num_hidden_layers=48, moe_intermediate_size=768)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    plan = plan_devices(tmp_path, devices=8, device="h100", purpose="serve", batch=8)
    assert plan.best.seconds >= plan.best.roofline


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"device": "h300"}, "did you mean 'h200'"),
        ({"link": "50"}, "with its unit, 50GB/s or 400Gb/s"),
        ({"link": "0GB/s"}, "is no rate"),
        ({"node": 3}, "do not divide 64; give a divisor, or 66 devices"),
        ({"link": None, "node": 8}, "say what a device can send"),
        ({"purpose": "train"}, "'train' is none of compress, recover, serve"),
        ({"efficiency": 2.0}, "above 0, at most 1"),
        ({"devices": 0}, "give at least one"),
        ({"gradients": "int3"}, "gradients='int3' is not possible"),
        ({"original": "half"}, "original='half' is not possible"),
        ({"device": "cpu"}, "leave link, node and efficiency out"),
        ({"device": "cpu", "link": None}, "leave link, node and efficiency out"),
        ({"device": "cpu", "link": None, "node": None}, "timed with a folder's config"),
        ({"new": 9}, "9 tokens are made by serve alone"),
        ({"seconds": 2.0}, "2 are to time this machine's processor"),
        ({"batch": 0}, "give 1 and 2 of them at least"),
    ],
)
def test_what_cannot_be_is_refused(asked: dict[str, Any], message: str) -> None:
    shapes = Shapes(blocks=4, hidden=64, heads=4, kv_heads=2, head_dim=16, inner=128, vocabulary=256)
    usual: dict[str, Any] = {"devices": 64, "device": "h200", "link": "50GB/s", "node": 8, "batch": 64}
    with pytest.raises(RecipeError, match=message):
        plan_devices(shapes, **{**usual, **asked})


def test_links_are_written_in_bytes_or_bits() -> None:
    assert read_link("50GB/s").bytes_per_s == read_link("400 Gb/s").bytes_per_s == read_link("400Gbps").bytes_per_s
    assert read_link("1.5TB/s").bytes_per_s == 1.5e12


def test_only_bits_that_learn_are_timed_on_this_machine(demo_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    for name, text in (("config.json", (demo_folder / "config.json").read_text()), (MANIFEST, "{}")):
        (tmp_path / "small" / name).write_text(text)
    for bits in (16, 1.5, 9):
        with pytest.raises(RecipeError, match=f"{bits:g} cannot be timed on this machine: integers of 2 to 8 bits"):
            plan_devices(demo_folder, devices=2, bits=bits)
    with pytest.raises(RecipeError, match="small says its own formats, and those are timed; leave bits out"):
        plan_devices(tmp_path / "small", devices=2, bits=4)
    assert [width_of(demo_folder, bits) for bits in (None, 2, 3.25, 8.25)] == [4, 2, 3, 8]
    assert width_of(tmp_path / "small", None) == 4


def test_points_are_joined_and_go_on_as_they_went() -> None:
    points = ((1.0, 3.0), (2.0, 4.0), (4.0, 10.0))
    assert [at(points, x) for x in (1, 1.5, 2, 3, 4, 8, 0.5)] == [3, 3.5, 4, 7, 10, 22, 2.5]
    assert at(((2.0, 4.0),), 3) == 6
    assert line({"sum 8": 1.0, "sum 2": 0.5, "sum": 9.0}, "sum") == ((2.0, 0.5), (8.0, 1.0))


def test_what_was_timed_by_two_is_told_of_four_that_share_two_cores() -> None:
    told = {"student 1 forward": 2.0, "student 2 forward": 3.0, "student 1 backward": 4.0, "student 2 backward": 6.0}
    told |= {"original 1": 1.0, "original 2": 2.0, "ends 1": 0.5, "ends 2": 1.0, "made forward": 0.5}
    told |= {"made backward": 1.0, "moves": 2.0, "moves sharded": 1.5, "sum 100": 1.1, "sum 1100": 2.1}
    told |= {"mean 10": 1.0, "mean 20": 2.0, "gather 10": 1.0, "gather 20": 2.0, "scatter 10": 1.5, "scatter 20": 3.0}
    found = Measured.of(told, 2, 2.0)
    assert found.forward(1, 1).seconds == 4
    assert (found.backward(2, 1).compute, found.backward(2, 1).memory) == (10, 2)
    assert found.moves(1, 1).seconds == 4
    assert found.moves(1, 2).seconds == 3
    assert found.share(10, 4, found.link, 32) == pytest.approx(2 * 1.5)  # of 3/4 each where it was 1/2
    assert found.shard(20, 2, found.link, 20) == 6
    assert found.shard(20, 2, found.link, 0) == 4
    assert found.link.latency_s == pytest.approx(0.5 * 2)
    assert found.link.bytes_per_s == pytest.approx(1000 / 2)
