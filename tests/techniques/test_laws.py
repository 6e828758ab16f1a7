"""The laws that every technique of layers keeps, and every one that changes a module, whatever it does."""

from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from torch._library.custom_ops import OPDEFS, CustomOpDef

from lissom.compress import compress_model
from lissom.formats import CompressedLayer, Dense, Trainable, Weight, read_weight
from lissom.models import compressible
from lissom.statistics import Fisher, Gram, Guided, Moments
from lissom.techniques import BLOCK, LAYER, MODEL, TECHNIQUES
from lissom.techniques.contract import apply, check, knobs, needs
from lissom.types import Step

KNOBS: dict[str, list[dict[str, Any]]] = {
    "magnitude": [{}, {"keep": 2, "of": 4}],
    "wanda": [{}, {"keep": 2, "of": 4}],
    "ria": [{}, {"keep": 2, "of": 4}],
    "sparsegpt": [{}, {"keep": 2, "of": 4}],
    "alps": [{}, {"keep": 2, "of": 4}],
    "kmeans": [{"rows": 0}, {"bits": 2}],
    "lnq": [{"bits": 3, "group": 64}, {"bits": 2, "rows": 5}],
    "vectors": [{}, {"bits": 5, "width": 4, "rows": 8, "group": 32}],
    "lowrank": [{}, {"rank": 8}],
    "residual": [{"rank": 4}, {"rank": 4, "bits": 16}],
    "hadamard": [{}, {"size": 32}],
    "rtn": [{}, {"bits": 3, "group": 32, "symmetric": False}, {"bits": 5, "group": 16, "scale_bits": 8}],
    "gptq": [
        {"group": 32},
        {"bits": 2, "group": 64, "symmetric": False, "act_order": False},
        {"bits": 3, "group": 32, "scale_bits": 8},
    ],
    "dynamic": [{}, {"bits": 4}],
    "floats": [{"kind": kind} for kind in ("nvfp4", "mxfp4", "mxfp8", "fp8_e4m3", "fp8_e5m2")],
    "yaqa": [{"group": 32, "scale_bits": 8}, {"bits": 2, "group": 64, "symmetric": False, "act_order": False}],
    "binary": [{}, {"group": 32, "rounds": 0}],
    "ternary": [{}, {"group": 32, "rounds": 0}],
    "nanoquant": [{"iterations": 10}, {"bits": 2.5, "iterations": 3}],
    "xnor": [{}],
}
CHANGING: dict[str, dict[str, Any]] = {
    "tuned": {"iterations": 5},
    "blocks": {"sparsity": 0.5},
    "distil": {"epochs": 2},
}
AFTER: dict[str, tuple[str, dict[str, Any]]] = {"residual": ("rtn", {"bits": 4})}  # it corrects what another wrote
NOT_SPARSE = {
    "hadamard": "zeros do not stay where they are in a turned matrix: a pruned weight is refused",
    "lowrank": "a product of two matrices cannot be zero at given places: a pruned weight is refused",
    "nanoquant": "a product of signs has no zeros: a pruned weight is refused",
    "residual": "the base keeps its zeros; the correction is added beside them",
}  # each is tested in its own file
NEAR = {"nanoquant": 0.2}  # relative, else 0.02: it begins with singular vectors, of which a device chooses the signs
NOT_SMALLER = {"hadamard": "it makes ready for what follows"}
CASES = [pytest.param(name, k, id=f"{name}-{n}") for name, all_knobs in KNOBS.items() for n, k in enumerate(all_knobs)]


def weight(o: int = 24, i: int = 128) -> Dense:
    return Dense(values=torch.randn(o, i, generator=torch.Generator().manual_seed(0)) * 0.1)


def data(i: int = 128) -> tuple[Tensor, Tensor]:
    """Inputs, and gradients at the outputs."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(300, i, generator=generator) @ (torch.eye(i) + 0.1 * torch.randn(i, i, generator=generator))
    return x, torch.randn(300, 24, generator=generator) @ torch.randn(24, 24, generator=generator)


def seen(x: Tensor, g: Tensor) -> dict[Any, Any]:
    found: dict[Any, Any] = {kind: kind.zero(x.shape[1], x.device) for kind in (Moments, Gram, Guided)}
    for statistic in found.values():
        statistic.see(x)
    found[Fisher] = Fisher.zero(g.shape[1], g.device)
    found[Fisher].see(g)
    return found


def run(technique: str, given: dict[str, Any], w: Weight | None = None, device: str = "cpu") -> Weight:
    step = Step(technique=technique, knobs=given)
    check(step)
    original = Dense(values=weight().values.to(device))
    if w is None:
        w = run(*AFTER[technique], device=device) if technique in AFTER else original
    return apply(step, "layer", w, original, seen(*(t.to(device) for t in data())))


def test_every_technique_is_under_the_laws() -> None:
    assert set(KNOBS) == set(LAYER)
    assert set(CHANGING) == set(BLOCK) | set(MODEL)


@pytest.mark.parametrize(("technique", "given"), CASES)
def test_the_input_is_untouched(technique: str, given: dict[str, Any]) -> None:
    w = weight()
    before = w.values.clone()
    run(technique, given, w)
    assert torch.equal(w.values, before)


@pytest.mark.parametrize(("technique", "given"), CASES)
def test_the_result_is_deterministic(technique: str, given: dict[str, Any]) -> None:
    assert torch.equal(run(technique, given).dense(), run(technique, given).dense())


@pytest.mark.parametrize(("technique", "given"), [case for case in CASES if case.values[0] not in NOT_SMALLER])
def test_the_result_is_smaller(technique: str, given: dict[str, Any]) -> None:
    assert run(technique, given).nbytes < weight().nbytes


@pytest.mark.parametrize(("technique", "given"), CASES)
def test_the_result_keeps_shape_and_is_finite(technique: str, given: dict[str, Any]) -> None:
    result = run(technique, given)
    assert result.shape == result.dense().shape == weight().shape
    assert result.dense().isfinite().all()


def hollow(x: Tensor, g: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Data of which no inverse exists, or whose squares come near to the ends of float32."""
    dead = torch.arange(x.shape[1]) % 3 == 0
    return {
        "zeros": (x * 0, g * 0),
        "dead inputs": (x * ~dead, g),
        "fewer rows than inputs": (x[:5], g[:5]),
        "one row": (x[:1], g[:1]),
        "tiny": (x * 1e-18, g * 1e-18),
        "huge": (x * 1e15, g * 1e15),
    }


@pytest.mark.parametrize("which", hollow(*data()))
@pytest.mark.parametrize(("technique", "given"), CASES)
def test_hollow_data_is_no_trouble(technique: str, given: dict[str, Any], which: str) -> None:
    x, g = hollow(*data())[which]
    before = run(*AFTER[technique]) if technique in AFTER else weight()
    after = apply(Step(technique=technique, knobs=given), "layer", before, weight(), seen(x, g)).dense()
    w, x = weight().dense(), x / x.abs().max().clamp(min=1e-30)
    assert after.isfinite().all()
    assert after.abs().max() < 3 * w.abs().max()
    assert (x @ (w - after).T).square().sum() <= (x @ w.T).square().sum()  # no worse than nothing at all


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_all_knobs_have_defaults_of_their_types(technique: str) -> None:
    for types, default in knobs(technique).values():
        assert type(default) in types


@pytest.mark.parametrize("technique", LAYER)
def test_a_technique_runs_without_data(technique: str) -> None:
    blank = {kind: kind.blank(24 if kind is Fisher else 128) for kind in needs(technique)}
    assert apply(Step(technique=technique), "layer", weight(), weight(), blank).dense().isfinite().all()


@pytest.mark.parametrize(("technique", "given"), CASES)
def test_stored_parts_give_the_weight_back(technique: str, given: dict[str, Any]) -> None:
    result = run(technique, given)
    parts = load(save({name or "values": part for name, part in result.parts().items()}))
    again = read_weight(result.spec(), {"" if name == "values" else name: part for name, part in parts.items()})
    assert torch.equal(again.dense(), result.dense())
    assert again.spec() == result.spec()


@pytest.mark.parametrize(("technique", "given"), [case for case in CASES if case.values[0] not in NOT_SPARSE])
def test_what_was_pruned_stays_zero(technique: str, given: dict[str, Any]) -> None:
    pruned = run("wanda", {"sparsity": 0.5})
    result = run(technique, given, pruned)
    assert (result.dense()[pruned.dense() == 0] == 0).all()
    kept = result.kept()
    assert kept is not None
    assert not kept[pruned.dense() == 0].any()


@pytest.mark.parametrize(("technique", "given"), CASES)
def test_trainable_weights_say_what_is_stored(technique: str, given: dict[str, Any]) -> None:
    result = run(technique, given)
    trainable = result.trainable()
    assert torch.equal(trainable(), result.dense())
    optimizer = torch.optim.Adam(trainable.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        (trainable() - weight().values - 0.05).square().sum().backward()
        optimizer.step()
    assert not torch.equal(trainable(), result.dense())
    assert torch.equal(trainable.weight().dense(), trainable())
    assert trainable.weight().nbytes == result.nbytes
    pruned = result.kept()
    assert pruned is None or (trainable()[~pruned] == 0).all()


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """A device whose tensors go together with none of the CPU, so that what is made there by default is found out.

    Operators are called as they are written: inside of one that was dispatched no default is felt.
    """
    monkeypatch.setattr(CustomOpDef, "__call__", lambda self, *given: self._init_fn(*given))
    for name, operator in OPDEFS.items():
        if name.startswith("lissom::"):
            monkeypatch.setattr(torch.ops.lissom, name.removeprefix("lissom::"), operator)
    return torch.device("meta")


def all_of_it(step: Step, w: Weight, original: Weight, x: Tensor, g: Tensor, index: Tensor) -> list[Tensor]:
    """What a technique makes of a weight and of data, and whatever can be done with that."""
    statistics = {kind: s.merge(kind.zero(len(s.power), x.device)) for kind, s in seen(x, g).items()}
    result = apply(step, "layer", w, original, statistics)
    trained = read_weight(result.spec(), result.parts()).trainable()
    found = [result.dense(), result.linear(result.activate(x)), result.look_up(index), trained().detach()]
    trained.near(original.dense())
    units = {p: unit for part in trained.modules() if isinstance(part, Trainable) for p, unit in part.units().items()}
    (trained.activate(x) @ (trained() + 0.05).T).square().sum().backward()
    with torch.no_grad():
        for p, unit in units.items():
            p.sub_(unit * p.grad.sign(), alpha=0.01)
    return [*found, *units.values(), trained().detach(), trained.weight().dense()]


@pytest.mark.parametrize(("technique", "given"), CASES)
def test_whatever_can_move_has_a_unit(technique: str, given: dict[str, Any]) -> None:
    w = run(*AFTER[technique]) if technique in AFTER else weight()
    statistics = {kind: s.merge(kind.zero(len(s.power), s.power.device)) for kind, s in seen(*data()).items()}
    result = apply(Step(technique=technique, knobs=given), "layer", w, weight(), statistics)
    trained = result.trainable()
    units = {p: unit for part in trained.modules() if isinstance(part, Trainable) for p, unit in part.units().items()}
    assert units.keys() == set(trained.parameters())
    assert all(unit.max() > 0 for unit in units.values())


@pytest.mark.parametrize(("technique", "given"), CASES)
def test_nothing_is_made_on_a_default_device(technique: str, given: dict[str, Any], elsewhere: torch.device) -> None:
    step, original, index = Step(technique=technique, knobs=given), weight(), torch.tensor([3, 0, 3])
    weights = [run(*AFTER[technique]) if technique in AFTER else original]
    weights += [] if technique in NOT_SPARSE else [run("wanda", {"sparsity": 0.5})]
    for w in weights:
        expected = all_of_it(step, w, original, *data(), index)
        x, g = data()
        with elsewhere:
            found = all_of_it(step, w, original, x, g, index)
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("kind", [Moments, Gram, Guided, Fisher])
def test_what_is_assumed_without_data_is_where_it_is_asked_for(kind: Any, elsewhere: torch.device) -> None:
    for made in (kind.zero, kind.blank):
        assert made(5, elsewhere).power.is_meta
        assert made(5).power.is_cpu


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use")
@pytest.mark.parametrize(("technique", "given"), CASES)
def test_a_gpu_makes_what_a_cpu_makes(technique: str, given: dict[str, Any]) -> None:
    here, there = run(technique, given), run(technique, given, device="cuda")
    assert all(part.is_cuda for part in there.parts().values())
    assert there.spec() == here.spec()
    x = data()[0]
    errors = [float((x @ (w.dense().cpu() - weight().values).T).square().sum()) for w in (here, there)]
    assert errors[1] == pytest.approx(errors[0], rel=NEAR.get(technique, 0.02), abs=1e-6)
    moved = read_weight(there.spec(), {name: part.cpu() for name, part in there.parts().items()})
    said, wanted = there.linear(there.activate(x.cuda())).cpu(), moved.linear(moved.activate(x))
    torch.testing.assert_close(said, wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max()))


@pytest.mark.parametrize("kind", [Moments, Gram, Guided, Fisher])
def test_merged_statistics_are_those_of_one_pass(kind: Any) -> None:
    x = torch.randn(50, 7, generator=torch.Generator().manual_seed(2))
    whole, one, other = kind.zero(7), kind.zero(7), kind.zero(7)
    whole.see(x)
    one.see(x[:20])
    other.see(x[20:])
    merged = one.merge(other)
    assert merged.n == whole.n == 50
    torch.testing.assert_close(merged.power, whole.power)
    assert merged.merge(kind.zero(7)).n == 50


def original() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Sequential(*(nn.Linear(16, 16) for _ in range(3))), nn.ReLU(), nn.Linear(16, 5))


def changed(technique: str | None, model: nn.Module) -> nn.Module:
    """The model rounded to 3 bits, and then changed by a technique."""
    more = [] if technique is None else [{"technique": technique, **CHANGING[technique]}]
    data = list(torch.randn(6, 30, 16, generator=torch.Generator().manual_seed(1)))
    return compress_model(model, data, steps=[{"technique": "rtn", "bits": 3}, *more])


def weights(model: nn.Module) -> dict[str, Weight]:
    return {name: layer.weight for name, layer in compressible(model).items() if isinstance(layer, CompressedLayer)}


@pytest.mark.parametrize("technique", CHANGING)
def test_a_changed_module_is_a_copy_and_deterministic(technique: str) -> None:
    model = original()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    one, other = (changed(technique, model).state_dict() for _ in range(2))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert set(one) == set(other)
    assert all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("technique", CHANGING)
def test_a_changed_module_is_another_and_no_larger(technique: str) -> None:
    rounded, found = changed(None, original()), changed(technique, original())
    x = torch.randn(10, 16)
    assert not torch.equal(rounded(x), found(x))
    sizes = [sum(w.nbytes for w in weights(module).values()) for module in (rounded, found)]
    assert sizes[1] <= sizes[0]


@pytest.mark.parametrize("technique", CHANGING)
def test_a_changed_module_is_trainable_and_says_what_is_stored(technique: str) -> None:
    found = changed(technique, original())
    layers = [layer for layer in compressible(found).values() if isinstance(layer, CompressedLayer)]
    assert layers
    for layer in layers:
        assert isinstance(layer.matrix, Trainable)
        assert torch.equal(layer.matrix(), layer.weight.dense())
