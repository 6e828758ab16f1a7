"""A model as a program: operations on rows of floats that are put together once, and run in C by passes (step.c).

What lies between two layers (a norm, a gate, a residual) is done where the next one makes or the last one writes its
numbers, so that a block of a decoder is five operations.
"""

import ctypes
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lissom.engine.kernels import native
from lissom.engine.kernels.layer import KernelEmbedding
from lissom.engine.kernels.lowrank import LowRankLinear
from lissom.engine.kernels.masked import MaskedLinear
from lissom.engine.kernels.native import calls, structs
from lissom.engine.kernels.panels import PanelLinear
from lissom.engine.kernels.signs import SignsLinear
from lissom.engine.kernels.sum import SumLinear
from lissom.engine.kernels.turned import TurnedLinear
from lissom.engine.operations import (
    DENSE,
    Angles,
    Attention,
    By,
    Code,
    Columns,
    Expert,
    Kind,
    Product,
    Router,
    Source,
    Whole,
    outputs,
    plainly,
)
from lissom.engine.passes import Block, How, Memory, Passes, untouched
from lissom.errors import ModelError
from lissom.formats import scale_of

S = TypeVar("S", bound="ctypes.Structure | ctypes.Array[Any]")


class Program:
    """Operations are appended, and `finish` makes the room that they share, for passes of at most `rows` tokens.

    The tensors of the model are read where they lie: it must stay as it is. Layers of bfloat16 in a model of that
    `dtype` round their inputs to it, as in PyTorch; all others read floats. Between operators of PyTorch, whose threads
    look for work for a while, it runs on these.

    Raises:
        ModelError: a layer that the library cannot run.
    """

    def __init__(self, rows: int, kernel: str, dtype: torch.dtype, *, beside_torch: bool = False) -> None:
        self._dtype = dtype
        self.rows, self._kernel, self._threads = rows, native.KERNELS.index(kernel), torch.get_num_threads()
        self._beside_torch = beside_torch
        self._memory = Memory()
        self._operations: list[structs.COperation] = []
        self._roundings: list[list[structs.CRounding]] = []  # the first of each operation, the second, ...
        self._made: list[
            tuple[structs.CLinear | structs.CMake, int, int]
        ] = []  # who needs so many rows of such a width
        self._narrow: list[structs.CLinear] = []  # and who needs all rows in bfloat16
        self._ends: list[structs.CProduct | structs.CBound] = []  # who is told where the logits go
        self._shared: dict[str, Columns] = {}
        self._cache_bytes = 0
        self._vocabulary = 0

    def matrix(self, width: int) -> Columns:
        """A new matrix of floats; rows that no pass has been long enough for take no memory."""
        room = torch.from_numpy(untouched(self.rows * width * torch.float32.itemsize))
        return Columns(self._room(room.view(torch.float32).view(self.rows, width)))

    def shared(self, name: str, width: int) -> Columns:
        """A matrix for what is read at once, which layers share; made anew where one needs it wider."""
        if name not in self._shared or self._shared[name].matrix.shape[1] < width:
            self._shared[name] = self.matrix(width)
        return self._shared[name]

    def embed(self, table: nn.Module, to: Columns, by: By = By.TOKEN) -> None:
        """Rows of an embedding."""
        held, scale = (table.layer, table.scale) if isinstance(table, KernelEmbedding) else (table, scale_of(table))
        made = structs.CEmbed(to=to.given(), scale=scale, by=by)
        if isinstance(held, PanelLinear):
            made.panels, made.layout = self._panels(held), structs.CLayout(*held.layout)
        else:
            made.dense, made.layout = self._dense(held), structs.CLayout(inputs=to.matrix.shape[1])
        self._append(Code.EMBED, made)

    def angles(self, angles: Angles) -> structs.CRotary:
        """The angles of each pass, made once for all layers that turn by them."""
        frequency = self._data(angles.frequency.float().contiguous())
        cosine, sine = (self._room(torch.zeros(self.rows, len(frequency))) for _ in range(2))
        made = structs.CRotary(address(frequency), address(cosine), address(sine), len(frequency), angles.scale)
        self._append(Code.ROTARY, made)
        return made

    def make(self, source: Source, to: Columns, *, add: bool = False, turn: int = 0) -> None:
        """to = source, or to += source; turned by Hadamard matrices of `turn` features."""
        made = structs.CMake(source=self._source(source), to=to.given(), turn=turn, add=add)
        self._made.append((made, self._threads, source.width))
        self._append(Code.MAKE, made)

    def linear(self, source: Source, *products: Product) -> None:
        """Layers that read the same input."""
        plain = [product for product in products if isinstance(product.layer, PanelLinear | DENSE)]
        if plain:
            self._linear(source, plain)
        for product in products:
            if product not in plain:
                self._composed(source, product)

    def pick(self, *rests: tuple[Columns, int]) -> None:
        """From here on a pass is the rows that are picked; of so many columns of some matrices they alone stay."""
        listed = (structs.CRest * len(rests))(*(structs.CRest(columns.given(), width) for columns, width in rests))
        self._append(Code.PICK, structs.CPick(ctypes.addressof(self._hold(listed)), len(rests)))

    def head(self, source: Source, layer: nn.Module, cap: float | None) -> None:
        """The logits of all rows, kept within ±cap."""
        self._vocabulary = outputs(layer)
        none = torch.empty(0, self._vocabulary)  # a pass makes room for as many rows as it needs
        linear = self._linear(source, [plainly(Product(layer, Columns(none)))])
        self._ends.append(structs.CProduct.from_address(linear.products))
        if cap is not None:
            bound = structs.CBound(width=self._vocabulary, cap=cap)
            self._ends.append(bound)
            self._append(Code.BOUND, bound)

    def attention(self, what: Attention, angles: structs.CRotary | None, dtype: torch.dtype, pages: int) -> None:
        """Attention over so many pages, a cache of its own."""
        made = structs.CAttention(
            *(columns.given() for columns in (what.query, what.key, what.value, what.to)),
            *(what.heads, what.groups, what.size),
            *(self._floats(norm) for norm in (what.query_norm, what.key_norm)),
            None if angles is None else ctypes.addressof(angles),
            None,
            *(what.window, calls.TYPES[dtype]),
            *(what.eps, what.scale, what.cap),
        )
        cache = torch.from_numpy(untouched(pages * native.page_bytes(made)))
        made.pages, self._cache_bytes = address(self._room(cache)), self._cache_bytes + cache.nbytes
        self._append(Code.ATTENTION, made)

    def whole(self, what: Whole) -> None:
        """Attention of each part of a pass to itself."""
        places = (columns.given() for columns in (what.query, what.key, what.value, what.to))
        self._append(Code.WHOLE, structs.CWhole(*places, what.heads, what.size, what.scale))

    def experts(self, source: Source, router: Router, experts: Sequence[Expert], to: Columns) -> None:
        """Adds to columns what the experts of each token say; all of them read one source, which is not these."""
        scores, said = self.shared(f"scores of {len(experts)}", len(experts)), self.shared("said", source.width)
        self.linear(source, Product(router.layer, scores))
        gates, sums = ((structs.CLinear * len(experts))() for _ in range(2))
        for expert, gate, sum_ in zip(experts, gates, sums, strict=True):
            self._fill(gate, source, [plainly(one) for one in expert.products])
            self._fill(sum_, expert.between, [plainly(Product(expert.layer, said))])
        weights = self.shared(f"weights of {len(experts)}", len(experts))
        asked = self._room(torch.zeros(self.rows, dtype=torch.int32))
        made = structs.CExperts(
            *(ctypes.addressof(self._hold(part)) for part in (gates, sums)),
            address(scores.matrix),
            *(said.given(), to.given()),
            *(len(experts), router.top, source.width),
            *(address(weights.matrix), address(asked)),
            router.whole,
        )
        self._append(Code.EXPERTS, made)

    def finish(self) -> Passes:
        """Make the room that operations share; what runs the program."""
        for same in self._roundings:
            sizes = [(rounding.width, rounding.width // rounding.block) for rounding in same]
            width, blocks = (max(size) for size in zip(*sizes, strict=True))
            codes = torch.empty(self.rows * width + 64, dtype=torch.int8)
            scales, sums = (torch.empty(self.rows * blocks + 64) for _ in range(2))
            for rounding in same:
                rounding.x, rounding.xs, rounding.xt = (address(self._room(part)) for part in (codes, scales, sums))
                rounding.room, rounding.blocks = width, blocks
        rows = max((rows for _, rows, _ in self._made), default=0)
        wide = max((width for *_, width in self._made), default=0)
        room = self._room(torch.empty(rows, wide))
        for made, *_ in self._made:
            made.made, made.room = address(room), wide
        narrow = self._room(torch.empty(self.rows if self._narrow else 0, wide, dtype=torch.bfloat16))
        for linear in self._narrow:
            linear.narrow = address(narrow)
        operations = self._hold((structs.COperation * len(self._operations))(*self._operations))
        how = How(
            rows=self.rows,
            vocabulary=self._vocabulary,
            cache_bytes=self._cache_bytes,
            kernel=self._kernel,
            threads=self._threads,
            beside_torch=self._beside_torch,
        )
        return Passes(operations, self._ends, how, self._memory)

    def _linear(self, source: Source, products: Sequence[Product]) -> structs.CLinear:
        linear = structs.CLinear()
        self._fill(linear, source, products)
        self._append(Code.LINEAR, linear)
        return linear

    def _fill(self, linear: structs.CLinear, source: Source, products: Sequence[Product]) -> None:
        """What layers that read the same input are given as."""
        layouts = list(dict.fromkeys(rounding_of(one.layer) for one in products if isinstance(one.layer, PanelLinear)))
        roundings = (structs.CRounding * len(layouts))()
        for at, (rounding, (layout, block, width)) in enumerate(zip(roundings, layouts, strict=True)):
            rounding.layout, rounding.block, rounding.width = structs.CLayout(*layout), block, width
            self._roundings.extend([] for _ in range(at + 1 - len(self._roundings)))
            self._roundings[at].append(rounding)
        made = (structs.CProduct * len(products))(*(self._product(product, layouts) for product in products))
        linear.source = self._source(source)
        linear.roundings = ctypes.addressof(self._hold(roundings)) if layouts else None
        linear.products = ctypes.addressof(self._hold(made))
        linear.rounding_count, linear.product_count = len(layouts), len(products)
        read = {self._read_as(product.layer) for product in products if isinstance(product.layer, DENSE)}
        self._made.append((linear, self.rows if torch.float32 in read else self._threads, source.width))
        if torch.bfloat16 in read:
            self._narrow.append(linear)

    def _product(self, product: Product, layouts: Sequence[object]) -> structs.CProduct:
        layer = product.layer
        if isinstance(layer, PanelLinear):
            panels, rounding = self._panels(layer), layouts.index(rounding_of(layer))
            return structs.CProduct(panels=panels, rounding=rounding, to=product.to.given(), add=product.add)
        return structs.CProduct(dense=self._dense(layer), to=product.to.given(), add=product.add)

    def _composed(self, source: Source, product: Product) -> None:
        """A layer that is several of them."""
        layer, to, add = product.layer, product.to, product.add
        if isinstance(layer, SumLinear):
            self.linear(source, Product(layer.base, to, add))
            self.linear(source, Product(layer.correction, to, True))
        elif isinstance(layer, LowRankLinear):
            between = self.shared("between", outputs(layer.right))
            self.linear(source, Product(layer.right, between))
            self.linear(Source(at=between, width=outputs(layer.right)), Product(layer.left, to, add))
        elif isinstance(layer, TurnedLinear):
            turned = self.shared("turned", source.width)
            self.make(source, turned, turn=layer.size)
            self.linear(Source(at=turned, width=source.width), Product(layer.base, to, add))
        elif isinstance(layer, SignsLinear):
            given, between = self.shared("given", source.width), self.shared("between", outputs(layer.right))
            self.make(source, given)
            scaled = Source(at=given, width=source.width, kind=Kind.SCALED, weight=layer.columns)
            self.linear(scaled, Product(layer.right, between))
            self.linear(Source(at=between, width=outputs(layer.right)), Product(layer.left, to, add))
        else:
            raise ModelError(f"engine: a layer that is a {type(layer).__name__} runs in PyTorch only")

    def _source(self, source: Source) -> structs.CSource:
        weight, bias = (self._floats(values) for values in (source.weight, source.bias))
        gate = structs.CColumns() if source.gate is None else source.gate.given()
        sizes = (source.width, source.kind, source.shape, source.eps)
        return structs.CSource(source.at.given(), gate, weight, bias, *sizes)

    def _floats(self, values: Float[Tensor, " n"] | None) -> int | None:
        """Where they are, as floats."""
        return None if values is None else address(self._data(values.detach().float().contiguous()))

    def _panels(self, layer: PanelLinear) -> int:
        self._buffers(layer)
        return ctypes.addressof(self._hold(structs.CPanels.from_buffer_copy(layer.given().panels)))

    def _read_as(self, layer: nn.Module) -> torch.dtype:
        """The type in which a dense layer reads its inputs."""
        weight = layer.values if isinstance(layer, MaskedLinear) else layer.weight
        return calls.read_as(weight.dtype, self._dtype)  # type: ignore[arg-type]

    def _dense(self, layer: nn.Module) -> int:
        if isinstance(layer, MaskedLinear):
            self._buffers(layer)
            return ctypes.addressof(self._hold(layer.given(self._read_as(layer))))
        weight, bias = layer.weight, getattr(layer, "bias", None)
        if (
            not isinstance(weight, Tensor)
            or weight.dtype not in calls.TYPES
            or not weight.is_contiguous()
            or weight.device.type != "cpu"
        ):
            raise ModelError(
                f"engine: a {type(layer).__name__} whose weight is {type(weight).__name__} runs in PyTorch only"
            )
        given = structs.CDense(
            *(address(self._data(weight)), self._floats(bias), None, None),
            *(*weight.shape, *(calls.TYPES[dtype] for dtype in (weight.dtype, self._read_as(layer)))),
        )
        return ctypes.addressof(self._hold(given))

    def _append(self, code: Code, what: ctypes.Structure) -> None:
        self._operations.append(structs.COperation(code, ctypes.addressof(self._hold(what))))

    def _hold(self, what: S) -> S:
        """Operations point to a struct, or to several."""
        self._memory.structs.append(what)
        return what

    def _data(self, tensor: Tensor) -> Tensor:
        """Operations read a tensor."""
        self._memory.data.append(Block(address(tensor), tensor.nbytes, tensor))
        return tensor

    def _room(self, tensor: Tensor) -> Tensor:
        """Operations write to a tensor what is needed no longer than a pass; or pages, zeros as they begin."""
        self._memory.rooms.append(Block(address(tensor), tensor.nbytes, tensor))
        return tensor

    def _buffers(self, layer: nn.Module) -> None:
        """Operations read what a layer holds."""
        for part in layer.buffers():
            self._data(part)


def rounding_of(layer: PanelLinear) -> tuple[tuple[int, ...], int, int]:
    """What layers must agree on to read the same integers."""
    return layer.layout, layer.block, layer.width


def address(tensor: Tensor) -> int:
    """Where its numbers begin."""
    return tensor.data_ptr()
