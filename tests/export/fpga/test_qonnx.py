"""QONNX, run by qonnx's own executor."""

import numpy as np
import pytest

from lissom.export.fpga import qonnx
from lissom.export.fpga.fixed import Fixed, Flat, Largest, Network, Stage, fitted

pytest.importorskip("qonnx", reason="qonnx is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # of packages that are not ours


def network(codes: tuple[int, ...]) -> tuple[Network, np.ndarray]:
    """A small convolution, windows, and a linear layer, of some codes."""
    rng, kind = np.random.default_rng(0), Fixed(bits=8, point=5)
    numbers = rng.normal(size=(30, 2, 6, 6))
    x, stages = kind.codes(numbers), list[Stage]()
    weights = [rng.choice(codes, (3, 2, 3, 3)), rng.choice(codes, (4, 27))]
    scales, biases = rng.uniform(-0.2, 0.2, 4), rng.normal(size=4)
    more = {"rectified": True, "bits": 8, "padding": (1, 1)}
    stages.append(fitted("0.a", weights[0], scales[:3], biases[:3], seen=x, kind=kind, **more))
    out = stages[0].out
    stages += [Largest(name="1", size=(2, 2), stride=(2, 2), out=out), Flat(name="2", out=out)]
    for stage in stages:
        x = stage.run(x, kind.point)
        kind = stage.out
    stages.append(fitted("3", weights[1], scales, biases, rectified=False, bits=16, seen=x, kind=out))
    return Network(shape=(2, 6, 6), entry=Fixed(bits=8, point=5), stages=stages), numbers


@pytest.mark.parametrize("codes", [(-1, 1), (-1, 0, 1), (-8, -3, 0, 5, 7), (-128, 3, 100)])
def test_it_runs_to_the_same_numbers(codes: tuple[int, ...]) -> None:
    made, numbers = network(codes)
    model = qonnx.model_of(made)
    assert np.array_equal(qonnx.run(model, numbers), made.run(numbers))
    kinds = {node.op_type for node in model.graph.node}
    assert ("BipolarQuant" in kinds) is (codes == (-1, 1))


def test_channels_can_be_last() -> None:
    from qonnx.core.onnx_exec import execute_onnx

    made, numbers = network((-3, 0, 2))
    model, one = qonnx.model_of(made, last=True), numbers[:1].astype(np.float32)
    found = execute_onnx(model, {qonnx.INPUT: one.transpose(0, 2, 3, 1)})[qonnx.OUTPUT]
    assert np.array_equal(found, made.run(one))


def test_names_are_those_of_cpp() -> None:
    assert qonnx.label("blocks.0.conv") == "layer_blocks_0_conv"
