"""One of several processes that time the pieces of a step of recovery at the same time, on cores that they share.

    python -m lissom.plan.worker FOLDER ASKED.json TOLD.json        under torchrun where there are several

The folder has a model of two blocks. Nothing here runs a step: each piece is run by itself, in turns with the others,
so that a machine that gets slower meets all of them alike. Of what a process does alone the seconds count that its
thread has worked, whoever else uses the cores; of what it does with others those of the clock. Of its times the median
counts, where others are waited for the quarter that was sooner, since what disturbs only makes it longer; of the
processes the mean.
"""

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn import Parameter
from torch.nn.parallel import DistributedDataParallel

from lissom.artifact.manifest import MANIFEST, write_json
from lissom.artifact.reading import build_language_model
from lissom.compress import compress_model
from lissom.compress.layers import evaluating, said
from lissom.files import read_json
from lissom.formats import CompressedLayer, unfreeze
from lissom.hardware.limits import product, reading
from lissom.models.families import Family, at, family_of, put
from lissom.plan.measured import BLOCKS, WORKED
from lissom.recover.feed import Lot
from lissom.recover.lessons import Original
from lissom.recover.model import learnable
from lissom.recover.moving import Moving, units_of
from lissom.recover.optimizers import make
from lissom.recover.parallel.gradients import compress_gradients
from lissom.recover.parallel.pieces import alike
from lissom.recover.parallel.stages import Through
from lissom.recover.parallel.workers import Workers, workers
from lissom.recover.training import PLAIN, RATES
from lissom.statistics import multiplies_bfloat16

LEAST, SIZE = 5, 768  # rounds, and the side of the matrices whose product is the peak
SMALL = 2**14  # numbers of the smaller sum
WAIT = ("sum ", "mean ", "gather ", "scatter ")  # what waits for others
READ = 2**27  # bytes of a pass over memory
Times = dict[str, float]
Piece = Callable[[], Times]


class Holder(nn.Module):
    """Parameters as a block has them, of which gradients are wanted, and no work to do with them."""

    def __init__(self, like: nn.Module, times: int, moves: bool) -> None:
        super().__init__()
        held = [p for _ in range(times) for p in like.parameters()]
        self.held = nn.ParameterList(Parameter(p.detach().clone(), p.requires_grad and moves) for p in held)
        for number, own in enumerate(list(like.buffers()) * times):  # which DistributedDataParallel tells all, too
            self.register_buffer(f"own {number}", own.clone())

    def forward(self, x: Tensor) -> Tensor:
        """Something that needs all of them."""
        return x + torch.stack([p.view(-1)[0] for p in self.held]).sum()


def opened(folder: Path, bits: int, artifact: Path | None) -> tuple[nn.Module, nn.Module]:
    """What learns, trainable, and the original: both of two blocks."""
    original = build_language_model(folder, {}, narrow=True)
    if artifact is not None:
        small = build_language_model(artifact, read_json(artifact / MANIFEST))
        family = family_of(small.config.model_type)  # type: ignore[union-attr, arg-type]
        put(small, family.blocks, nn.ModuleList(list(at(small, family.blocks).children())[:BLOCKS]))
        return unfreeze(small), original
    whole = build_language_model(folder, {})
    family = family_of(whole.config.model_type)  # type: ignore[union-attr, arg-type]
    step = {"layers": f"{family.blocks}.*", "technique": "rtn", "bits": bits, "group": 64}
    return unfreeze(compress_model(whole, steps=[step])), original


class Bench:
    """The pieces of one process."""

    def __init__(self, folder: Path, asked: Mapping[str, Any], team: Workers) -> None:
        self.asked, self.team = asked, team
        artifact = None if asked["artifact"] is None else Path(asked["artifact"])
        self.make = partial(opened, folder, asked["bits"], artifact)
        self.student, self.teacher = self.make()
        self.units = units_of(self.student, asked["train"])
        self.family: Family = family_of(self.student.config.model_type)  # type: ignore[union-attr, arg-type]
        self.blocks, self.others = (list(at(m, self.family.blocks).children()) for m in (self.student, self.teacher))
        self.bf16 = multiplies_bfloat16()

    def pieces(self) -> dict[str, Piece]:
        """All of them, by name; what they return are seconds by what is added to that."""
        found: dict[str, Piece] = {}
        for windows in self.asked["windows"]:
            lot = Lot(torch.randint(0, self.asked["vocabulary"], (windows, self.asked["length"])))
            found[f"student {windows}"] = partial(self.learns, self.met(self.student, lot))
            found[f"original {windows}"] = partial(self.said, self.met(self.teacher, lot))
            found[f"ends {windows}"] = partial(self.ends, lot)
        found["made"] = self.made
        found["moves"] = self.moving(self.student, self.units)
        multiply, flops = product(torch.bfloat16 if self.bf16 else torch.float32, SIZE, self.team.device)
        read, nbytes = reading(READ, self.team.device)
        found["product"] = lambda: timed(" per flop", multiply, flops)
        found["read"] = lambda: timed(" per byte", read, nbytes)
        return found | (self.between() if self.team.count > 1 else {})

    def between(self) -> dict[str, Piece]:
        """Those that need other processes: sums, means of gradients, and shards."""
        block, found = self.blocks[0], dict[str, Piece]()
        large = sum(p.numel() for p in block.parameters())
        for numbers in (SMALL, large):
            found[f"sum {4 * numbers}"] = partial(self.summed, torch.ones(numbers))
        for times in (1, BLOCKS):
            plain = Holder(block, times, True)
            moving = sum(p.numel() for p in plain.parameters() if p.requires_grad)
            shared = DistributedDataParallel(Holder(block, times, True))
            if self.asked["gradients"] != PLAIN:
                compress_gradients(shared, self.asked["gradients"])
            found[f"mean {moving}"] = partial(self.beside, shared, plain)
            for name, moves in (("scatter", True), ("gather", False)):
                apart = Holder(block, times, moves)
                fully_shard(apart, reshard_after_forward=True)
                found[f"{name} {times * large}"] = partial(self.beside, apart, Holder(block, times, moves))
        other, _ = self.make()
        units = units_of(other, self.asked["train"])
        for one in at(other, self.family.blocks).children():
            fully_shard(one)
        fully_shard(other)
        placed = {name: alike(units[name].expand(p.shape), p) for name, p in other.named_parameters() if name in units}
        found["moves sharded"] = self.moving(other, placed)
        return found

    def met(self, model: nn.Module, lot: Lot) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        """What the blocks of a model are given."""
        found: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        keep = [
            block.register_forward_pre_hook(lambda part, args, named: found.append((args, named)), with_kwargs=True)
            for block in at(model, self.family.blocks).children()
        ]
        with torch.no_grad(), learnable(model), evaluating(model):
            model(lot.batch)
        for hook in keep:
            hook.remove()
        return found

    def run(self, blocks: list[nn.Module], given: list[Any], x: Tensor) -> Tensor:
        """Blocks, one after the other."""
        for block, (args, named) in zip(blocks, given, strict=True):
            x = said(block, block(x, *args[1:], **named))
        return x

    def learns(self, given: list[Any]) -> Times:
        """Blocks that learn, there and back."""
        x = given[0][0][0].detach().clone().requires_grad_()
        with torch.enable_grad(), torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            begun = time.process_time()
            y = self.run(self.blocks, given, x)
        there = time.process_time()
        y.backward(torch.full_like(y, 1e-3))
        back = time.process_time()
        cleared(self.student)
        return {" forward": (there - begun) / BLOCKS, " backward": (back - there) / BLOCKS}

    @torch.no_grad()
    def said(self, given: list[Any]) -> Times:
        """Blocks of the original."""
        return timed("", partial(self.run, self.others, given, given[0][0][0]), BLOCKS)

    def made(self) -> Times:
        """Matrices from their formats, there and back."""
        parts = [part for block in self.blocks for part in block.modules() if isinstance(part, CompressedLayer)]
        begun = time.process_time()
        made = [part.matrix() for part in parts]
        there = time.process_time()
        torch.autograd.backward(made, [torch.ones_like(one) for one in made])
        back = time.process_time()
        cleared(self.student)
        return {" forward": (there - begun) / BLOCKS, " backward": (back - there) / BLOCKS}

    def ends(self, lot: Lot) -> Times:
        """All but the blocks, of both models, there and back."""
        with without(self.student, self.family), without(self.teacher, self.family):
            lesson = Original(self.teacher)

            def act() -> None:
                with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
                    loss = lesson.loss(self.student, lot)
                loss.backward()

            found = timed("", act)
        cleared(self.student)
        return found

    def moving(self, model: nn.Module, units: Mapping[str, Tensor]) -> Piece:
        """A step with all that moves, as `Learner` takes it."""
        moves = Moving(model, units)
        name = self.asked["optimizer"]
        optimizer: Any = make(name, moves.phi.values(), RATES[name] * 1e-3)
        gradients = {p: torch.full_like(p, 1e-3) for p in moves.phi}

        def act() -> None:
            moves.pull()
            nn.utils.clip_grad_norm_(list(moves.phi.values()), 1.0)
            optimizer.step(lambda: torch.zeros(()))
            moves.place()

        def piece() -> Times:
            for p, gradient in gradients.items():
                p.grad = gradient.clone()
            return timed("", act, BLOCKS)

        return piece

    def summed(self, x: Tensor) -> Times:
        """A sum over all processes."""
        x.fill_(1.0)
        return waited(lambda: dist.all_reduce(x, group=self.team.group))

    def beside(self, shared: nn.Module, plain: nn.Module) -> Times:
        """What it takes longer to run where parameters are shared."""
        spent = []
        for part in (shared, plain):
            x = torch.zeros((), requires_grad=True)
            spent.append(waited(lambda part=part, x=x: part(x).backward()))  # type: ignore[misc]
            cleared(part)
        return {name: longer - spent[1][name] for name, longer in spent[0].items()}


@contextmanager
def without(model: nn.Module, family: Family) -> Iterator[None]:
    """Within the block the model has no blocks that do anything."""
    held = at(model, family.blocks)
    put(model, family.blocks, nn.ModuleList(Through(block) for block in held.children()))
    try:
        yield
    finally:
        put(model, family.blocks, held)


def cleared(model: nn.Module) -> None:
    """Without gradients."""
    for p in model.parameters():
        p.grad = None


def timed(name: str, act: Callable[[], object], times: float = 1) -> Times:
    """The seconds that a call worked, over so many times."""
    begun = time.process_time()
    act()
    return {name: (time.process_time() - begun) / times}


def waited(act: Callable[[], object]) -> Times:
    """The seconds of a call by the clock, and those that this process has worked."""
    begun, worked = time.perf_counter(), time.process_time()
    act()
    return {"": time.perf_counter() - begun, WORKED: time.process_time() - worked}


def rounds(pieces: Mapping[str, Piece], seconds: float, team: Workers) -> dict[str, list[float]]:
    """The times of all pieces, taken in turns for about so many seconds; all processes begin each at once."""
    found: dict[str, list[float]] = {}
    end, number = time.perf_counter() + seconds, -1
    while number < LEAST or team.agreed(time.perf_counter()) < team.agreed(end):
        for name, spent in once(pieces, team).items():
            found.setdefault(name, []).extend([spent] if number >= 0 else [])
        number += 1
    return found


def once(pieces: Mapping[str, Piece], team: Workers) -> Times:
    """The times of all pieces, each run once; all processes begin each at once."""
    found: Times = {}
    for name, piece in pieces.items():
        team.wait()
        found |= {name + own: spent for own, spent in piece().items()}
    return found


def told_of(bench: Bench, found: Mapping[str, list[float]]) -> dict[str, Any]:
    """What is typical, over all processes."""
    means = {name: bench.team.mean(typical(name, spent), 1.0) for name, spent in found.items()}
    return {"pieces": means, "bf16": bench.bf16, "workers": bench.team.count}


def typical(name: str, spent: list[float]) -> float:
    """The median; where others are waited for, the lower quartile."""
    waits = name.startswith(WAIT) and not name.endswith(WORKED)
    return statistics.quantiles(spent, n=4)[0] if waits else statistics.median(spent)


def main(folder: Path, asked: Mapping[str, Any], told: Path) -> None:
    """Time everything, and write the medians."""
    with workers() as team:
        bench = Bench(folder, asked, team)
        with learnable(bench.student), learnable(bench.teacher), evaluating(bench.student):
            found = rounds(bench.pieces(), asked["seconds"], team)
        means = told_of(bench, found)
        if team.first:
            write_json(told, means)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), read_json(Path(sys.argv[2])), Path(sys.argv[3]))
