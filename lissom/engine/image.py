"""A language model that has been put together, as a file: its program, and all that the program points to.

    a length of 8 bytes, JSON of that length    structs    a table of pointers    data, from where a page begins

A pointer is written down as one of three kinds of places (passes.py) and how far into it; where these are is known to
who reads the file. Rooms are not in it, only how much they take. It is for the version that wrote it alone.
"""

import ctypes
import json
import mmap
import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from ctypes import Array, Structure, c_void_p
from dataclasses import asdict, dataclass
from types import SimpleNamespace
from typing import Any, BinaryIO

import numpy as np

from lissom.engine.kernels.native import structs
from lissom.engine.passes import LINE, Block, How, Memory, Passes

KINDS = STRUCTS, DATA, ROOMS = range(3)  # of places
ENDS: dict[str, Any] = {"CProduct": structs.CProduct, "CBound": structs.CBound}
POPULATE = getattr(mmap, "MAP_POPULATE", 0)  # Linux has it
POINTER = np.dtype([("at", np.int64), ("kind", np.int64), ("to", np.int64)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """A language model that has been put together, with so many pages; and what an engine asks of it beside."""

    passes: Passes
    pages: int
    config: Any  # vocab_size, max_position_embeddings
    generation_config: Any  # eos_token_id


@dataclass(frozen=True, slots=True)
class Place:
    """A block, and where it is put."""

    block: Block
    kind: int
    offset: int


class Places:
    """Where all blocks of a memory are put, each once."""

    def __init__(self, memory: Memory) -> None:
        whole = [Block(ctypes.addressof(one), ctypes.sizeof(one), one) for one in memory.structs]
        self.sizes, found = list[int](), list[Place]()
        for kind, blocks in zip(KINDS, (whole, memory.data, memory.rooms), strict=True):
            offset = 0
            for block in {one.address: one for one in sorted(blocks, key=lambda one: one.nbytes)}.values():
                found.append(Place(block, kind, offset))
                offset += -(-block.nbytes // LINE) * LINE
            self.sizes.append(offset)
        self._ordered = sorted((one for one in found if one.block.nbytes), key=lambda one: one.block.address)
        self._addresses = [one.block.address for one in self._ordered]

    def of(self, kind: int) -> Iterator[Place]:
        """Those of a kind, in the order of their offsets."""
        yield from sorted((one for one in self._ordered if one.kind == kind), key=lambda one: one.offset)

    def at(self, address: int) -> tuple[int, int]:
        """The kind of place that an address is in, and how far from the beginning of all that are of that kind."""
        place = self._ordered[bisect_right(self._addresses, address) - 1]
        assert place.block.address <= address < place.block.address + place.block.nbytes, "a pointer to nowhere"
        return place.kind, place.offset + address - place.block.address


def write(file: BinaryIO, model: Ready, told: Mapping[str, Any]) -> None:
    """Write a model, and what else is to be told of it, into a file that is not buffered; what was in it is gone.

    Its memory is given back as it is written, unless somebody else has it too: its program cannot run any more.
    """
    memory = model.passes.held
    assert isinstance(memory, Memory)
    places = Places(memory)
    body, pointers = np.zeros(places.sizes[STRUCTS], np.uint8), list[tuple[int, int, int]]()
    for place in places.of(STRUCTS):
        struct = place.block.owner
        assert isinstance(struct, Structure | Array)
        body[place.offset :][: place.block.nbytes] = np.frombuffer(memoryview(struct).cast("B"), np.uint8)
        for within in pointers_of(type(struct)):
            if address := c_void_p.from_address(place.block.address + within).value:
                pointers.append((place.offset + within, *places.at(address)))
    table = np.array(pointers, POINTER)
    operations, ends = model.passes.operations, model.passes.ends
    head = {
        "how": asdict(model.passes.how),
        "pages": model.pages,
        "config": {name: getattr(model.config, name) for name in ("vocab_size", "max_position_embeddings")},
        "eos_token_id": getattr(model.generation_config, "eos_token_id", None),
        "operations": [places.at(ctypes.addressof(operations))[1], len(operations)],
        "ends": [[type(end).__name__, places.at(ctypes.addressof(end))[1]] for end in ends],
        "sizes": places.sizes,
        "pointers": len(table),
        "told": told,
    }
    text = json.dumps(head).encode()
    file.seek(0)
    file.truncate()
    put(file, [len(text).to_bytes(8, "little"), text, body, table])
    begin = boundary(file.tell())
    waiting = [(place.offset, place.block) for place in places.of(DATA)][::-1]
    del places, memory.data[:], memory.rooms[:]
    while waiting:
        offset, block = waiting.pop()
        file.seek(begin + offset)
        put(file, [(ctypes.c_ubyte * block.nbytes).from_address(block.address)])
        del block
    file.truncate(max(file.tell(), begin + 1))


def read(file: BinaryIO) -> tuple[Ready, dict[str, Any]]:
    """What was written: the model, whose data stay in the file, mapped into memory, and what was told of it."""
    file.seek(0)
    head = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    body = mmap.mmap(-1, max(head["sizes"][STRUCTS], 1))
    body.write(file.read(head["sizes"][STRUCTS]))
    table = np.frombuffer(file.read(head["pointers"] * POINTER.itemsize), POINTER)
    how = {"flags": mmap.MAP_SHARED | POPULATE, "prot": mmap.PROT_READ, "offset": boundary(file.tell())}
    data = mmap.mmap(file.fileno(), os.fstat(file.fileno()).st_size - how["offset"], **how)
    held = (body, data, mmap.mmap(-1, max(head["sizes"][ROOMS], 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
    bases = np.array([np.frombuffer(part, np.uint8).ctypes.data for part in held])
    np.frombuffer(body, np.int64)[table["at"] // 8] = bases[table["kind"]] + table["to"]
    first, count = head["operations"]
    base = int(bases[STRUCTS])
    passes = Passes(
        (structs.COperation * count).from_address(base + first),
        [ENDS[name].from_address(base + at) for name, at in head["ends"]],
        How(**head["how"]),
        held,
    )
    model = Ready(
        passes=passes,
        pages=head["pages"],
        config=SimpleNamespace(**head["config"]),
        generation_config=SimpleNamespace(eos_token_id=head["eos_token_id"]),
    )
    return model, head["told"]


def pointers_of(kind: Any) -> list[int]:
    """How far into a type its pointers are."""
    if issubclass(kind, Array):
        each, size = pointers_of(kind._type_), ctypes.sizeof(kind._type_)
        return [number * size + at for number in range(kind._length_) for at in each]
    if issubclass(kind, Structure):
        return [getattr(kind, name).offset + at for name, one, *_ in kind._fields_ for at in pointers_of(one)]
    return [0] if kind is c_void_p else []


def boundary(at: int) -> int:
    """Where the next page begins that can be mapped."""
    return -(-at // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY


def put(file: BinaryIO, parts: Iterable[Any]) -> None:
    """Write bytes, all of them."""
    for part in parts:
        left = memoryview(part).cast("B")
        while left:
            left = left[file.write(left) :]
