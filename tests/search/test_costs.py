"""Costs of layers on targets that are not here, by hand; and the table of targets, which says what the exports do."""

from typing import Any

import pytest
import torch
from torch import nn

from lissom import compress_model
from lissom.errors import DataError
from lissom.export.fpga import alone
from lissom.export.fpga import project as fpga
from lissom.export.tpu import chips
from lissom.export.tpu import folder as tpu
from lissom.export.tpu.alone import Work
from lissom.formats import FORMATS, Affine, Binary, CompressedLinear, Dense, Sum, Weight, Xnor
from lissom.formats import kernel_of as kernel_on_gpu
from lissom.hardware import target_named
from lissom.hardware.roofline import seconds
from lissom.hardware.sheets import SHEETS
from lissom.hardware.ways import TPU, way_of
from lissom.models import weight_of
from lissom.search.costs import AREA, LATENCY, Layer, costs_of
from lissom.search.explain import kernel_of
from lissom.search.loads import Use

STEPS: dict[str, dict[str, Any]] = {
    "affine": {"technique": "rtn", "bits": 4, "group": 64},
    "dynamic": {"technique": "dynamic"},
    "ternary": {"technique": "ternary"},
    "binary": {"technique": "binary"},
    "palette": {"technique": "kmeans"},
    "masked": {"technique": "magnitude", "sparsity": 0.5},
    "lowrank": {"technique": "lowrank", "keep": 0.5},
    "signs": {"technique": "nanoquant", "iterations": 5},
    "floats": {"technique": "floats"},
    "turned": {"technique": "hadamard"},
}
OUT, IN = 64, 128
LAYER = nn.Linear(IN, OUT, bias=False)


def made(*steps: dict[str, Any]) -> Weight:
    """A random matrix after some steps."""
    return weight_of(compress_model(nn.Sequential(nn.Linear(IN, OUT)), torch.randn(64, IN), steps=steps)[0])


def every() -> dict[str, Weight]:
    """A weight in each format."""
    found = {name: made(step) for name, step in STEPS.items() if name != "turned"}
    found["turned"] = made(STEPS["turned"], STEPS["affine"])
    base, low, binary = found["affine"], found["lowrank"], found["binary"]
    assert isinstance(binary, Binary)
    found |= {"sum": Sum(base=base, correction=low), "xnor": Xnor(binary=binary)}
    found["narrow"] = made({"technique": "floats", "kind": "fp8_e4m3"}, {"technique": "dynamic"})
    return {**found, "dense": Dense(values=base.dense())}


def test_the_table_says_what_is_so() -> None:
    """On TPUs and FPGAs it is what the exports hold, here what the layers are swapped for."""
    weights = every()
    assert set(weights) == set(FORMATS)
    for name, weight in weights.items():
        spec = weight.spec()
        assert spec["format"] == name
        assert bool(way_of("tpu", spec).becomes) == (tpu.holds(weight, LAYER) is None), name
        if name != "affine":  # of which the table says that groups become rows
            assert bool(way_of("fpga", spec).becomes) == (fpga.holds(weight, LAYER) is None), name
        told = "dense" if name == "dense" else kernel_of(LAYER, weight)
        way = way_of("cpu", spec)
        assert told == ("dense" if name == "dense" else "decoded" if way.decoded else way.kernel), name
        assert way_of("cuda", spec).kernel.startswith("Triton") == (kernel_on_gpu(weight) is not None), name


def test_topologies_are_those_that_can_be_named() -> None:
    assert set(TPU.devices) == set(chips.KINDS)


def cost(target: str, weight: Weight | None, *uses: Use, width: int = 2, examples: int = 1) -> Any:
    given = Layer(layer=LAYER, weight=weight, width=width, load={"call": list(uses)}, examples=examples)
    return costs_of(target_named(target))(given)


def test_a_dense_layer_is_its_operations_or_its_bytes() -> None:
    sheet = SHEETS["h100"]
    nbytes = OUT * IN * 2 + 5 * (OUT + IN) * 2
    once = seconds(sheet, "bf16", 2 * 5 * OUT * IN, nbytes)
    assert cost("cuda:h100", None, Use(rows=5)) == {"call": pytest.approx(1000 * once)}
    assert cost("cuda:h100", None, Use(rows=5, calls=3.5))["call"] == pytest.approx(3500 * once)
    wide = seconds(sheet, "fp32", 2 * 5 * OUT * IN, 2 * nbytes)
    assert cost("cuda:h100", None, Use(rows=5), width=4) == {"call": pytest.approx(1000 * wide)}


def test_what_is_decoded_at_every_call_is_written_and_read_as_well() -> None:
    weight = made(STEPS["ternary"])
    found = cost("cuda:b200", weight, Use(rows=1))["call"]
    nbytes = weight.nbytes + 2 * OUT * IN * 2 + (OUT + IN) * 2
    assert found == pytest.approx(1000 * seconds(SHEETS["b200"], "bf16", 2 * OUT * IN, nbytes))
    assert found > cost("cuda:b200", None, Use(rows=1))["call"]


def test_on_a_tpu_integers_have_the_bytes_that_it_holds() -> None:
    """Of 3 bits 4, and what was pruned as many as all others."""
    four, pruned = made(STEPS["affine"]), made(STEPS["masked"], STEPS["affine"])
    three = made({**STEPS["affine"], "bits": 3})
    held = OUT * IN / 2 + OUT * (IN // 64) * 2 + (OUT + IN) * 2
    for weight in (four, three, pruned):
        assert isinstance(weight, Affine)
        assert cost("tpu:v5e", weight, Use(rows=1))["call"] == pytest.approx(
            1000 * seconds(SHEETS["tpu-v5e"], "bf16", 2 * OUT * IN, held)
        )
    masked = made(STEPS["masked"])
    assert cost("tpu:v5e", masked, Use(rows=1)) == pytest.approx(cost("tpu:v5e", None, Use(rows=1)))


def test_rows_that_are_looked_up_are_what_is_read() -> None:
    nbytes = 7 * (IN * 2 + IN * 2)
    assert cost("cuda:a100", None, Use(rows=7, looks_up=True))["call"] == pytest.approx(
        1000 * seconds(SHEETS["a100"], "bf16", 0, nbytes)
    )


def test_what_is_made_of_several_costs_what_they_do() -> None:
    low = made(STEPS["lowrank"])
    both = Sum(base=Dense(values=torch.randn(OUT, IN).bfloat16()), correction=low)
    alone_, found = cost("cuda:h200", low, Use(rows=3))["call"], cost("cuda:h200", both, Use(rows=3))["call"]
    assert found == pytest.approx(alone_ + cost("cuda:h200", None, Use(rows=3))["call"])


def test_where_the_compiler_is_here_what_it_makes_is_costed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every number of rows once; of a weight of several matrices each."""
    asked: list[tuple[str, int, str]] = []

    def work_of(weight: Weight, rows: int, kind: str, dtype: torch.dtype) -> Work:
        asked.append((str(weight.spec()["format"]), rows, kind))
        return Work(operations=1e6 * rows, nbytes=1e9)

    monkeypatch.setattr("lissom.hardware.ways.find_spec", lambda package: package)
    monkeypatch.setattr("lissom.export.tpu.alone.work_of", work_of)
    uses = Use(rows=4), Use(rows=1, calls=3), Use(rows=4)
    once = 1000 * seconds(SHEETS["tpu-v5e"], "bf16", 1e6, 1e9)
    assert cost("tpu:v5e", made(STEPS["affine"]), *uses)["call"] == pytest.approx(5 * once)
    assert cost("tpu:v5e", None, Use(rows=2)) == {"call": pytest.approx(once)}
    assert cost("tpu:v5e", made(STEPS["lowrank"]), Use(rows=2)) == {"call": pytest.approx(2 * once)}
    assert asked == [(name, rows, "v5e") for name, rows in (("affine", 4), ("affine", 1), *[("dense", 2)] * 3)]
    looked_up = cost("tpu:v5e", None, Use(rows=7, looks_up=True))["call"]
    assert looked_up == pytest.approx(1000 * seconds(SHEETS["tpu-v5e"], "bf16", 0, 7 * 4 * IN))
    with pytest.raises(DataError, match="would become 8 bits"):
        cost("tpu:v5e", made(STEPS["palette"]), Use(rows=1))


def test_a_circuit_is_counted() -> None:
    rows = made({"technique": "rtn", "bits": 4})
    found = cost("fpga:xc7z020clg400-1", rows, Use(rows=32), examples=8)
    counted = alone.taken(rows, LAYER, 4)
    assert found == {
        LATENCY: pytest.approx(counted.cycles * 5e-6),
        AREA: pytest.approx(counted.lut / 53_200 + counted.dsp / 220),
    }
    assert cost("fpga:xc7z020clg400-1", None, Use(rows=1))[AREA] > found[AREA]


@pytest.mark.parametrize(
    ("target", "form", "message"),
    [
        ("tpu:v6e", "palette", "palette would become 8 bits in groups of 32"),
        ("fpga:xcu250-figd2104-2L-e", "affine", "affine would become 8 bits with a scale for each row"),
        ("fpga:xcu250-figd2104-2L-e", "masked", "masked would become"),
    ],
)
def test_what_becomes_another_form_is_refused(target: str, form: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        cost(target, made(STEPS[form]), Use(rows=1))


def test_layers_are_compressed_ones_too() -> None:
    layer = compress_model(nn.Sequential(nn.Linear(IN, OUT)), torch.randn(64, IN), steps=[STEPS["affine"]])[0]
    assert isinstance(layer, CompressedLinear)
    given = Layer(layer=layer, weight=layer.weight, width=2, load={"call": [Use(rows=1)]})
    assert costs_of(target_named("tpu:v5p"))(given)["call"] > 0
