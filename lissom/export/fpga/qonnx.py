"""A network in fixed point as QONNX: ONNX in which each rounding is a node, as FINN, hls4ml and Brevitas have it.

Codes of weights are constants behind a node that says their bits; scales and biases are a product and a sum after it,
so that what hardware multiplies with inputs stays whole numbers. The same can be written with the channels of maps
last, which is how hls4ml reads it.
"""

import re
from typing import Any

import numpy as np

from lissom.export.fpga.circuit import bits_of
from lissom.export.fpga.fixed import Fixed, Flat, Largest, Network, Product

OPSET, DOMAIN, LAST = 13, "qonnx.custom_op.general", "qonnx.custom_op.channels_last"
INPUT, OUTPUT = "numbers", "answers"  # hls4ml keeps "input" for itself
Shape = tuple[int, ...]


class Graph:
    """Nodes and constants, one after the other; `made` is what came out so far, `last` whether channels are last."""

    def __init__(self, last: bool) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.values: list[Any] = []
        self.last, self.made = last, INPUT

    def constant(self, name: str, value: Any) -> str:
        """A constant of float32."""
        from onnx import numpy_helper

        self.constants.append(numpy_helper.from_array(np.asarray(value, np.float32), name))
        return name

    def node(self, kind: str, name: str, inputs: list[str], shape: Shape, domain: str = "", **attributes: Any) -> str:
        """A node; the name of what it makes, which is of a shape."""
        from onnx import TensorProto, helper

        made = f"{name}_out"
        self.nodes.append(helper.make_node(kind, inputs, [made], name=name, domain=domain, **attributes))
        self.values.append(helper.make_tensor_value_info(made, TensorProto.FLOAT, shape))
        return made

    def of_map(self, shape: Shape) -> Shape:
        """The shape of an example as it lies here, with a dim for examples."""
        return (1, *shape[1:], shape[0]) if self.last else (1, *shape)

    def rounded(self, name: str, what: str, kind: Fixed, shape: Shape) -> str:
        """A value rounded to a type."""
        told = {"scale": kind.step, "zero": 0.0, "bits": kind.bits}
        inputs = [what, *(self.constant(f"{name}_{part}", value) for part, value in told.items())]
        sign = {"signed": int(kind.signed), "narrow": 0, "rounding_mode": "ROUND"}
        return self.node("Quant", name, inputs, shape, DOMAIN, **sign)

    def whole(self, name: str, codes: np.ndarray) -> str:
        """Codes of weights, behind their bits; 1 and -1 alone are one bit."""
        held = self.constant(f"{name}_codes", codes)
        if bits_of(codes) == 1:
            return self.node("BipolarQuant", name, [held, self.constant(f"{name}_scale", 1.0)], codes.shape, DOMAIN)
        return self.rounded(name, held, Fixed(bits=max(bits_of(codes), 2), point=0), codes.shape)

    def product(self, stage: Product, after: Shape) -> None:
        """A layer with weights, and its scales, its bias and its rounding."""
        name, shape = label(stage.name), self.of_map(after)
        if stage.codes.ndim == 2:
            inputs = [self.made, self.whole(f"{name}_weight", stage.codes.T)]
            y = self.node("MatMul", f"{name}_product", inputs, shape)
        else:
            codes = stage.codes.transpose(0, 2, 3, 1) if self.last else stage.codes
            inputs = [self.made, self.whole(f"{name}_weight", codes)]
            y = self.node("Conv", f"{name}_product", inputs, shape, LAST if self.last else "", **told(stage))
        y = self.rounded(f"{name}_sums", y, stage.sums, shape)
        y = self.node(
            "Mul", f"{name}_scaled", [y, self.wide(f"{name}_factor", stage.factor, stage.factor_type, shape)], shape
        )
        y = self.node(
            "Add", f"{name}_moved", [y, self.wide(f"{name}_bias", stage.bias, bias_type(stage), shape)], shape
        )
        y = self.node("Relu", f"{name}_relu", [y], shape) if stage.rectified else y
        self.made = self.rounded(f"{name}_rounded", y, stage.out, shape)

    def wide(self, name: str, codes: np.ndarray, kind: Fixed, shape: Shape) -> str:
        """A number for each channel, rounded to a type, as it lies beside a map."""
        across = (len(codes),) if self.last else (len(codes), *[1] * (len(shape) - 2))
        held = self.constant(f"{name}_numbers", (codes * kind.step).reshape(across))
        return self.rounded(name, held, kind, across)

    def largest(self, stage: Largest, after: Shape) -> None:
        """The largest of each window."""
        size = {"kernel_shape": list(stage.size), "strides": list(stage.stride), "pads": [0, 0, 0, 0]}
        shape = self.of_map(after)
        self.made = self.node("MaxPool", label(stage.name), [self.made], shape, LAST if self.last else "", **size)

    def flat(self, stage: Flat, before: Shape, after: Shape) -> None:
        """A map as a row, channel by channel."""
        if self.last and len(before) == 3:
            turned = f"{label(stage.name)}_turned"
            self.made = self.node("Transpose", turned, [self.made], (1, *before), perm=[0, 3, 1, 2])
        self.made = self.node("Flatten", label(stage.name), [self.made], (1, *after), axis=1)


def label(name: str) -> str:
    """A layer's name as C++ can have it."""
    return "layer_" + re.sub(r"\W", "_", name)


def bias_type(stage: Product) -> Fixed:
    """The type that holds the biases of a layer."""
    return Fixed(bits=max(bits_of(stage.bias), 2), point=stage.point)


def told(stage: Product) -> dict[str, Any]:
    """How a convolution's windows lie."""
    (down, across), size = stage.padding, list(stage.codes.shape[2:])
    pads = [down, across, down, across]
    return {"kernel_shape": size, "strides": list(stage.stride), "pads": pads, "dilations": [1, 1], "group": 1}


def model_of(network: Network, last: bool = False) -> Any:
    """The network as a model of QONNX, for one example at a time; with `last` the channels of maps are last."""
    from onnx import TensorProto, helper
    from qonnx.core.modelwrapper import ModelWrapper

    graph, maps = Graph(last), network.maps()
    graph.made = graph.rounded("entry", INPUT, network.entry, graph.of_map(network.shape))
    for stage, (before, after) in zip(network.stages, maps, strict=True):
        match stage:
            case Product():
                graph.product(stage, after)
            case Largest():
                graph.largest(stage, after)
            case Flat():
                graph.flat(stage, before, after)
    graph.nodes[-1].output[0] = OUTPUT
    shapes = {INPUT: network.shape, OUTPUT: maps[-1][1]}
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, graph.of_map(shape)) for n, shape in shapes.items()]
    values = graph.values[:-1]
    made = helper.make_graph(graph.nodes, "lissom", ends[:1], ends[1:], graph.constants, value_info=values)
    sets = [helper.make_opsetid(name, version) for name, version in (("", OPSET), (DOMAIN, 1), (LAST, OPSET))]
    return ModelWrapper(helper.make_model(made, producer_name="lissom", opset_imports=sets, ir_version=8))


def run(model: Any, numbers: np.ndarray) -> np.ndarray:
    """What qonnx's own executor makes of examples, all at once."""
    from qonnx.core.onnx_exec import execute_onnx
    from qonnx.transformation.change_batchsize import ChangeBatchSize
    from qonnx.transformation.infer_shapes import InferShapes

    many = model.transform(ChangeBatchSize(len(numbers))).transform(InferShapes())
    found: np.ndarray = execute_onnx(many, {INPUT: numbers.astype(np.float32)})[OUTPUT]
    return found
