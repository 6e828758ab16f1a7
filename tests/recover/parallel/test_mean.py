"""The mean in two shots: against its literal definition, on threads that speak over gloo."""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import pad

from lissom.recover.parallel.codes import Code, Integers, Qsgd, Sign, TopK
from lissom.recover.parallel.mean import Mean
from lissom.recover.parallel.wire import Meter, Wire

D = 1000
CODES: list[Code] = [Integers(bits=4, group=16), Integers(bits=8, group=16), Sign(group=32), TopK(fraction=0.1)]


def gradients(n: int, d: int = D) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(n)) * torch.linspace(0.1, 5, d)


def literal(code: Code, x: Tensor) -> Tensor:
    """Parts written by each, read and averaged by one, written and read again."""
    n, d = x.shape
    c = -(-d // (n * code.align)) * code.align
    lots = torch.Generator()
    parts = []
    for part in range(n):
        read = []
        for one in range(n):
            row = pad(x[one], (0, n * c - d))[part * c : (part + 1) * c].unsqueeze(0)
            read.append(code.decode(code.encode(row, lots), c)[0])
        parts.append(code.decode(code.encode(torch.stack(read).mean(0, keepdim=True), lots), c)[0])
    return torch.cat(parts)[:d]


def test_it_is_what_it_says_on_all_processes(together) -> None:
    for n in (2, 3):
        for code in CODES:
            x, meters = gradients(n), [Meter() for _ in range(n)]

            def act(group: dist.ProcessGroup, x: Tensor = x, code: Code = code, meters: list[Meter] = meters):
                return Mean(Wire(group, meters[group.rank()]), code).of(x[group.rank()], "bucket")

            found = together(n, act)
            expected = literal(code, x)
            assert all(torch.allclose(mean, expected, rtol=1e-6, atol=1e-7) for mean, _ in found)
            assert all(torch.equal(mean, found[0][0]) for mean, _ in found)
            c = -(-D // (n * code.align)) * code.align
            octets = code.encode(torch.zeros(1, c), torch.Generator()).shape[1]
            assert [meter.sent for meter in meters] == [2 * (n - 1) * octets] * n
            assert all(lost.norm() < one.norm() for one, (_, lost) in zip(x, found, strict=True))


def test_what_a_code_forgets_is_told_in_the_end(together) -> None:
    """With feedback on both ways the sum of means strays from the sum of gradients by what is owed, not by more."""
    n, steps = 2, 20
    x = gradients(n, 256)
    for code in (Sign(group=32), Integers(bits=2, group=16), TopK(fraction=0.2)):

        def act(group: dist.ProcessGroup, code: Code = code) -> tuple[Tensor, Tensor, Tensor]:
            mean, own, owed, total = (
                Mean(Wire(group, Meter()), code),
                x[group.rank()],
                torch.zeros(256),
                torch.zeros(256),
            )
            for _ in range(steps):
                found, owed = mean.of(own + owed, 0)
                total += found
            return total, owed, mean.owed[0].flatten()

        told = together(n, act)
        back = torch.cat([owed for _, _, owed in told])[:256]
        lost = torch.stack([owed for _, owed, _ in told]).mean(0)
        wanted = steps * x.mean(0)
        assert torch.allclose(told[0][0] + lost + back, wanted, rtol=1e-3, atol=1e-2)
        assert (told[0][0] - wanted).norm() < 0.5 * wanted.norm()


def test_a_step_without_numbers_is_seen_and_not_remembered(together) -> None:
    def act(group: dist.ProcessGroup) -> tuple[bool, bool]:
        mean = Mean(Wire(group, Meter()), Integers(bits=4, group=16))
        bad = torch.ones(64)
        bad[3] = torch.nan if group.rank() == 1 else 1.0
        first, _ = mean.of(bad, "bucket")
        second, _ = mean.of(torch.ones(64), "bucket")
        return bool(first.isfinite().all()), bool(second.isfinite().all())

    assert together(2, act) == [(False, True), (False, True)]


def test_each_process_draws_lots_of_its_own(together) -> None:
    def act(group: dist.ProcessGroup) -> int:
        return Mean(Wire(group, Meter()), Qsgd(), seed=3).lots(torch.device("cpu")).initial_seed()

    assert sorted(together(3, act)) == [9, 10, 11]


def test_the_wire_counts_what_others_sum_with_it(together) -> None:
    meters = [Meter() for _ in range(3)]

    def act(group: dist.ProcessGroup) -> Tensor:
        x = torch.ones(300)
        dist.all_reduce(x, group=Wire(group, meters[group.rank()]))
        return x

    assert all(torch.equal(x, torch.full((300,), 3.0)) for x in together(3, act))
    assert [meter.sent for meter in meters] == [2 * 2 * 1200 // 3] * 3
