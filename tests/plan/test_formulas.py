"""The formulas, against numbers worked out by hand, and the laws that hold for all numbers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lissom.plan import compression, recovery, serving
from lissom.plan.collectives import gather_s, gathered_bytes, send_s, sum_s, summed_bytes
from lissom.plan.compression import Compression
from lissom.plan.device import DEVICES, Device, Link
from lissom.plan.forecast import COMPUTE, IDLE, LINK, MEMORY, Cost, Forecast, work
from lissom.plan.pieces import Rated
from lissom.plan.recovery import Recovery
from lissom.plan.serving import Serving
from lissom.plan.shapes import Shapes
from lissom.plan.split import Cluster, Split, divisors, misfit, splits

WIRE = Link(bytes_per_s=100.0, latency_s=1.0)
BOX = Device(name="box", flops=1000.0, read=100.0, memory=1e9, inside=WIRE, efficiency=0.5, reading=0.5, overlaps=False)
SMALL = Shapes(blocks=4, hidden=8, heads=4, kv_heads=2, head_dim=2, inner=16, vocabulary=32)


def cluster(count: int, node: int | None = None, device: Device = BOX) -> Cluster:
    slow = Link(bytes_per_s=device.inside.bytes_per_s / 10, latency_s=device.inside.latency_s)
    return Cluster(device=device, count=count, node=node or count, outside=slow)


def step(split: Split, shapes: Shapes = SMALL, device: Device = BOX, **given_: object) -> Forecast:
    job = Recovery(**{"shapes": shapes, "batch": 16, "length": 8, "original": "split", **given_})  # type: ignore[arg-type]
    rated = Rated(device=device, shapes=shapes, length=job.length, moving=job.moving)
    return recovery.foresee(job, split, cluster(split.devices, device=device), rated)


def test_a_ring_sends_twice_all_but_its_own_part() -> None:
    assert summed_bytes(1200, 4) == 1800  # three parts of 300 to be summed, and three to be told
    assert gathered_bytes(1200, 4) == 900
    assert sum_s(1200, 4, WIRE) == pytest.approx(6 + 18)
    assert gather_s(1200, 4, WIRE) == pytest.approx(3 + 9)
    assert send_s(200, WIRE) == 3
    assert (sum_s(1200, 1, WIRE), gather_s(1200, 1, WIRE)) == (0, 0)


def test_few_bytes_among_many_devices_go_through_trees() -> None:
    assert sum_s(0, 1024, WIRE) == 20  # twice the ten levels, not twice 1023 messages
    assert sum_s(1e9, 4, WIRE) == pytest.approx(6 + 1.5e7)  # many bytes among few by the ring


def test_what_takes_longer_hides_the_other() -> None:
    assert work(BOX, 5000, 100) == Cost(compute=10.0)
    assert work(BOX, 500, 100) == Cost(memory=2.0)


def test_a_block_of_gpt_has_the_flops_of_narayanan() -> None:
    h, s = 48, 32  # a gate makes three matrices of 8/3 h what two of 4 h are
    gpt = Shapes(blocks=2, hidden=h, heads=4, kv_heads=4, head_dim=h // 4, inner=8 * h // 3, vocabulary=100)
    assert gpt.block_flops(s) * s == 24 * s * h**2 + 4 * s**2 * h
    whole = 4 * gpt.blocks * gpt.block_flops(s) * s + 3 * s * gpt.head_flops  # eq. (3), where all is computed again
    assert whole == pytest.approx(96 * s * 2 * h**2 * (1 + s / (6 * h) + 100 / (16 * 2 * h)))


def test_the_states_of_adamw_are_28_bytes_for_each_weight_and_the_best_so_far_four() -> None:
    told = step(Split(), group=10**9).memory
    weights = SMALL.blocks * SMALL.block_weights
    assert told["moving"] == pytest.approx(28 * weights)  # φ, begun, unit, gradient, best; two moments
    assert told["parameters"] == pytest.approx(4 * (weights + SMALL.end_weights))
    assert step(Split(), optimizer="sgd", group=10**9).memory["moving"] == pytest.approx(20 * weights)
    few = step(Split(), train="scales", group=64).memory["moving"]
    assert few == pytest.approx(28 * weights / 64)


def test_a_pipeline_is_idle_for_its_stages_less_one() -> None:
    told = step(Split(pipeline=4, parts=8))
    stage = (told.cost.seconds - step(Split(pipeline=4, parts=8), train="weights").cost.seconds) or None
    assert stage is None
    one = Rated(device=BOX, shapes=SMALL, length=8, moving=Recovery(shapes=SMALL, batch=16, length=8).moving)
    last = one.forward(2, 1) + one.backward(2, 1) + one.original(2, 1) + one.ends(2, 1)
    sends = 3 * send_s(2 * 8 * SMALL.hidden * 2, WIRE)
    assert told.idle == pytest.approx(3 * (last.seconds + sends))
    busy = told.cost.seconds - one.moves(1, 1).seconds + told.sync["pipeline"]
    assert told.idle / busy == pytest.approx(3 / 8)  # (p - 1) / m


def test_shards_send_half_as_much_again_as_replicas() -> None:
    shared, sharded = (step(split, group=10**9).traffic for split in (Split(data=4), Split(shard=4)))
    weights = SMALL.blocks * SMALL.block_weights
    assert shared["data"] == pytest.approx(2 * 3 / 4 * 4 * weights)
    ends = 3 / 4 * (2 * 4 * SMALL.end_weights + 2 * SMALL.weights)  # they do not move; and the original, in 16 bits
    assert sharded["shard"] - ends == pytest.approx(1.5 * shared["data"])


def test_gradients_in_few_bits_send_that_much_less() -> None:
    plain, few = (step(Split(data=4), gradients=kind).traffic["data"] for kind in ("float32", "int8"))
    assert few / plain == pytest.approx(8.25 / 32)


def test_tensor_sums_four_times_in_each_block_and_twice_in_the_original() -> None:
    told = step(Split(tensor=2))
    output = 16 * 8 * SMALL.hidden * 2
    assert told.traffic["tensor"] == pytest.approx(SMALL.blocks * 6 * output)
    whole = step(Split(tensor=2), original="whole").traffic["tensor"]
    assert whole == pytest.approx(SMALL.blocks * 4 * output)


def test_reading_every_weight_bounds_a_token() -> None:
    slow = Device(name="reader", flops=1e30, read=100.0, memory=1e9, inside=WIRE, reading=1.0)
    job = Serving(shapes=SMALL, batch=1, length=4, new=2)
    told = serving.foresee(job, Split(), cluster(1, device=slow))
    head = SMALL.vocabulary * SMALL.hidden * 2
    cached = 5 * 2 * SMALL.blocks * SMALL.kv_heads * SMALL.head_dim * 2
    assert told.seconds == pytest.approx((SMALL.blocks * SMALL.block_weights * 2 + cached + head) / 100)
    assert told.bottleneck == MEMORY
    quarter = serving.foresee(Serving(shapes=SMALL, batch=4, length=4, new=2), Split(data=4), cluster(4, device=slow))
    assert quarter.seconds == pytest.approx(told.seconds)


def test_sweeps_do_not_become_shorter_with_more_devices() -> None:
    job = Compression(shapes=SMALL, batch=16, length=8)
    one, many = (compression.foresee(job, Split(data=n), cluster(n)) for n in (1, 16))
    swept = SMALL.blocks * sum(
        work(BOX, i**3 + o * i * i, 4 * (i * i + 2 * o * i)).seconds * count
        for i, o, count in compression.inputs(SMALL)
    )
    assert swept < many.cost.seconds < one.cost.seconds
    grams = 4 * SMALL.blocks * sum(i * i * count for i, _, count in compression.inputs(SMALL))
    assert many.traffic["data"] == pytest.approx(2 * 15 / 16 * grams)


def test_the_inputs_of_a_block_are_those_of_its_weights() -> None:
    mixed = Shapes(blocks=4, hidden=8, heads=4, kv_heads=2, head_dim=2, inner=16, vocabulary=32, sparse=3, experts=4)
    mixed = Shapes(**{**fields_of(mixed), "chosen": 2, "expert_inner": 6})
    for shapes in (SMALL, mixed):
        router = shapes.hidden * shapes.experts * shapes.sparse / shapes.blocks
        counted = sum(i * o * count for i, o, count in compression.inputs(shapes))
        assert counted == pytest.approx(shapes.block_weights - router)
    assert mixed.active_weights < mixed.touched_weights(2) < mixed.touched_weights(1000) <= mixed.block_weights
    assert mixed.touched_weights(1) == pytest.approx(mixed.active_weights)


def fields_of(shapes: Shapes) -> dict[str, float]:
    return {name: getattr(shapes, name) for name in Shapes.__dataclass_fields__}


def test_an_axis_uses_the_link_inside_as_long_as_it_fits() -> None:
    held = cluster(64, node=8)
    split = Split(tensor=4, shard=2, data=4, pipeline=2)
    assert held.link(split, "tensor") == held.link(split, "shard") == BOX.inside
    assert held.link(split, "data") == held.link(split, "pipeline") == held.outside
    three = Cluster(device=BOX, count=24, node=8, outside=held.outside)
    assert three.link(Split(tensor=3), "tensor") == held.outside  # some of the groups of three lie in two nodes


def test_what_most_of_a_step_is_of_is_its_bottleneck() -> None:
    told = Forecast(split=Split(), cost=Cost(compute=1, memory=2), sync={"data": 2, "shard": 2}, idle=3)
    assert told.seconds == 10
    assert told.shares == {COMPUTE: 0.1, MEMORY: 0.2, LINK: 0.4, IDLE: 0.3}
    assert told.bottleneck == LINK


@given(count=st.integers(1, 400))
def test_every_split_takes_all_devices_and_none_comes_twice(count: int) -> None:
    found = list(splits(count))
    assert {split.devices for split in found} == {count}
    assert len(set(found)) == len(found)
    assert divisors(count) == [d for d in range(1, count + 1) if count % d == 0]


@given(
    shard=st.sampled_from([1, 2, 4]),
    data=st.sampled_from([1, 2]),
    tensor=st.sampled_from([1, 2]),
    pipeline=st.sampled_from([1, 2, 3]),
    checkpointing=st.booleans(),
    overlaps=st.booleans(),
    original=st.sampled_from(recovery.ORIGINALS),
)
def test_laws_of_a_step(
    shard: int, data: int, tensor: int, pipeline: int, checkpointing: bool, overlaps: bool, original: str
) -> None:
    device = Device(**{**{f: getattr(BOX, f) for f in Device.__dataclass_fields__}, "overlaps": overlaps})
    given_: dict[str, object] = {"checkpointing": checkpointing, "original": original, "device": device}
    split = Split(data=data, shard=shard, tensor=tensor, pipeline=pipeline)
    told = step(split, **given_)  # type: ignore[arg-type]
    assert misfit(split, SMALL, 16) == ""
    assert all(value >= 0 for part in (told.sync, told.traffic, told.memory) for value in part.values())
    assert told.seconds >= told.roofline > 0
    assert sum(told.shares.values()) == pytest.approx(1)
    assert set(told.sync) == set(told.traffic)
    further = Split(data=data, shard=2 * shard, tensor=tensor, pipeline=pipeline)
    if shard > 1 or data > 1:
        assert step(further, **given_).nbytes <= told.nbytes  # type: ignore[arg-type]
    if overlaps:
        plain = step(split, checkpointing=checkpointing, original=original)
        assert told.seconds <= plain.seconds


@given(name=st.sampled_from(sorted(DEVICES)), batch=st.sampled_from([1, 8, 64]), tensor=st.sampled_from([1, 2, 4]))
def test_no_device_serves_faster_than_its_peaks(name: str, batch: int, tensor: int) -> None:
    shapes = Shapes(blocks=32, hidden=4096, heads=32, kv_heads=8, head_dim=128, inner=14336, vocabulary=128256)
    job = Serving(shapes=shapes, batch=batch, length=1024)
    told = serving.foresee(job, Split(tensor=tensor), cluster(tensor, device=DEVICES[name]))
    assert told.seconds >= told.roofline > 0
    assert told.notes["request_tokens_per_s"] < told.tokens_per_s
