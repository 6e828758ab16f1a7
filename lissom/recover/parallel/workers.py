"""Workers: the processes that train one model together, as torchrun starts them; one process is alone."""

import gc
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn  # before a group exists: its functions' defaults would hold that group for good
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

Kept = tuple[Any, dict[str, Tensor]]  # what JSON can hold, and tensors by name


class Workers:
    """How many there are, which of them this is, and what they tell one another. `group` is None where one is alone."""

    def __init__(self, group: dist.ProcessGroup | None = None, device: torch.device | None = None) -> None:
        self.group, self.device = group, device or torch.device("cpu")
        self.rank, self.count = (0, 1) if group is None else (group.rank(), group.size())

    @property
    def first(self) -> bool:
        """Whether this is the one that writes, and that talks to the user."""
        return self.rank == 0

    def mean(self, total: float, weight: float) -> float:
        """The totals of all over the weights of all."""
        if self.group is None:
            return total / weight
        both = torch.tensor([total, weight], dtype=torch.float64, device=self.device)
        dist.all_reduce(both, group=self.group)
        return float(both[0] / both[1])

    def agreed(self, value: float, rank: int = 0) -> float:
        """The first one's, or that of the one of this rank, by all."""
        if self.group is None:
            return value
        told = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.broadcast(told, rank, self.group)
        return float(told)

    def wait(self) -> None:
        """Until all have come so far."""
        self.mean(0.0, 1.0)

    def told(self, kept: Kept | None, rank: int = 0) -> Kept | None:
        """What the first one has, or the one of this rank, by all; the others give anything."""
        if self.group is None:
            return kept
        mine, (record, tensors) = self.rank == rank, kept or ({}, {})
        shapes = {name: [str(t.dtype).removeprefix("torch."), list(t.shape)] for name, t in tensors.items()}
        head = json.dumps([kept is not None, record, shapes]).encode() if mine else b""
        size = int(self.agreed(len(head), rank))
        letter = torch.frombuffer(bytearray(head.ljust(size)), dtype=torch.uint8).to(self.device)
        dist.broadcast(letter, rank, self.group)
        there, record, shapes = json.loads(bytes(letter.cpu().tolist()))
        found = {}
        for name, (kind, shape) in shapes.items():
            own = tensors[name] if mine else torch.empty(shape, dtype=getattr(torch, kind))
            sent = own.detach().to(self.device).contiguous()
            dist.broadcast(sent.flatten().view(torch.uint8), rank, self.group)  # as bytes: not every type is sent
            found[name] = sent.cpu()
        return (record, found) if there else None

    def gathered(self, kept: Kept | None) -> list[Kept | None]:
        """What each one has, by all, in their order."""
        return [self.told(kept, rank) for rank in range(self.count)]


ALONE = Workers()


def started() -> int:
    """How many torchrun has started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local() -> int:
    """How many of them are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this process is the first of those that torchrun has started, or alone."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def workers() -> Iterator[Workers]:
    """Those that torchrun has started, this being one of them; else this process alone."""
    if started() == 1:
        yield ALONE
        return
    gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if gpu else torch.device("cpu")
    begun = not dist.is_initialized()
    if begun:
        store, rank, count = next(rendezvous("env://"))
        # torchrun starts workers anew with the store that has the addresses of those that died
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = dist.PrefixStore(f"attempt {attempt}", store)  # type: ignore[attr-defined]
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo", store=store, rank=rank, world_size=count)
    try:
        yield Workers(dist.group.WORLD, device)
    finally:
        if begun:
            leave()


def leave() -> None:
    """End this process's groups and their threads, none of which may see the process end: it would be aborted."""
    gc.collect()  # what hangs together in circles holds groups
    dist.destroy_process_group()
