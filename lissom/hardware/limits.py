"""What the machine could do: the rates that no model can exceed on it, measured.

Reading weights bounds a language model that writes one token at a time; multiplying matrices bounds everything else.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import TypeAlias

import torch
from torch import Tensor

from lissom.estimate import Estimate, median_estimate
from lissom.hardware.machine import cores, memory_bytes
from lissom.hardware.measure import once_ms
from lissom.hardware.target import check_target

Work: TypeAlias = tuple[Callable[[], Tensor], int]  # what to do, and how many bytes or operations that is

ROUNDS = 6  # at least: fewer do not hold the median between them with 95 %
KINDS = {"int8": torch.int8, "bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Measured rates: reading memory in GB/s (10⁹ bytes), square matrix products in GOP/s (10⁹ additions and products).

    `read_one` is by one thread, all others by all threads. On a GPU both readings are by the GPU.
    """

    read_one: Estimate
    read_all: Estimate
    int8: Estimate
    bf16: Estimate
    fp32: Estimate

    def as_dict(self) -> dict[str, Estimate]:
        """The rates by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def limits(seconds: float = 1.0, *, target: str = "cpu", size: int = 1024, read_bytes: int = 2**30) -> Limits:
    """The rates of this machine, each measured for about so many seconds, with matrices of `size` x `size`.

    `read_bytes` must be far more than the caches hold; no more than an eighth of the memory is taken. While other
    programs use the cores, the rates are what these leave, and products by all threads suffer most.
    """
    place = check_target(target)
    read = reading(min(read_bytes, memory_bytes() // 8), place)
    products = {name: product(kind, size, place) for name, kind in KINDS.items()}
    with threads(1):
        alone = rate(*read, seconds, target, "GB/s")
    with threads(cores()):
        together = rate(*read, seconds, target, "GB/s")
        rates = {name: rate(*work, seconds, target, "GOP/s") for name, work in products.items()}
    return Limits(read_one=alone, read_all=together, **rates)


def reading(nbytes: int, place: torch.device) -> Work:
    """Reads so many bytes: a dot product of a vector with itself passes over it once."""
    x = torch.ones(nbytes // 4, device=place)
    return lambda: torch.dot(x, x), nbytes


def product(kind: torch.dtype, size: int, place: torch.device) -> Work:
    """Multiplies two square matrices: 2 · size³ operations; integers are summed in int32."""
    a, b = (torch.randint(-9, 9, (size, size), device=place).to(kind) for _ in range(2))
    multiply = torch._int_mm if kind is torch.int8 else torch.mm
    return lambda: multiply(a, b.T), 2 * size**3


def rate(function: Callable[[], Tensor], amount: int, seconds: float, target: str, unit: str) -> Estimate:
    """Billions per second, the median of as many calls as there is time for."""
    once_ms(function, target)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < ROUNDS or time.perf_counter() < end:
        times.append(once_ms(function, target))
    return median_estimate(times).through(lambda ms: amount / (1e6 * ms), unit=unit)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many threads for torch, and afterwards as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
