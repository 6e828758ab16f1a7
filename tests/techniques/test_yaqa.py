"""YAQA against its literal definition, and against deliberately wrong versions of itself."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lissom.formats import Dense
from lissom.statistics import Fisher, Gram, Guided
from lissom.techniques.prune.magnitude import magnitude
from lissom.techniques.quantize.gptq import gptq
from lissom.techniques.quantize.yaqa import order, yaqa

OUTPUTS, INPUTS = 20, 32
DAMP, DAMP_OUT = 0.01, 0.1


@pytest.fixture
def case() -> tuple[Tensor, Guided, Fisher]:
    generator = torch.Generator().manual_seed(8)
    x = torch.randn(200, INPUTS, generator=generator) @ (
        torch.eye(INPUTS) + 0.3 * torch.randn(INPUTS, INPUTS, generator=generator)
    )
    g = torch.randn(150, OUTPUTS, generator=generator) @ (
        torch.eye(OUTPUTS) + 0.4 * torch.randn(OUTPUTS, OUTPUTS, generator=generator)
    )
    seen, heard = Guided.zero(INPUTS), Fisher.zero(OUTPUTS)
    seen.see(x)
    heard.see(g)
    return torch.randn(OUTPUTS, INPUTS, generator=generator), seen, heard


def damped(h: Tensor, damp: float) -> Tensor:
    return h.double() + damp * h.diagonal().mean() * torch.eye(len(h))


def objective(error: Tensor, x: Guided, g: Fisher) -> float:
    return float(((g.mean @ error) * (error @ x.mean)).sum())


def oracle(
    w: Tensor,
    x: Guided,
    g: Fisher,
    scale: Tensor,
    *,
    h_in: Callable[[Tensor], Tensor] = lambda h: h,
    h_out: Callable[[Tensor], Tensor] = lambda h: h,
    damps: tuple[float, float] = (DAMP, DAMP_OUT),
    shift: int = 0,
) -> Tensor:
    """Entry by entry, R_ij as the sum that it is defined by; the arguments make it deliberately wrong."""
    rows, columns = order(g.power, True), order(x.power, True)
    h = damped(h_in(x.mean), damps[0])[columns][:, columns]
    k = damped(h_out(g.mean), damps[1])[rows][:, rows]
    left, s = w.double()[rows][:, columns], scale.roll(shift, 1).double()[rows][:, columns]
    m, n = (t.triu(1) + torch.eye(len(t)) for t in (upper(h), upper(k)))
    error = torch.zeros_like(left)
    done = torch.zeros_like(left)
    for i in range(OUTPUTS):
        for j in range(INPUTS):
            felt = (n[:, i].unsqueeze(1) * error * m[:, j]).sum()  # R_ij of the errors above and to the left
            wanted = left[i, j] + felt
            done[i, j] = (wanted / s[i, j]).round().clamp(-4, 3) * s[i, j]
            error[i, j] = left[i, j] - done[i, j]
    back = torch.empty_like(done)
    back[rows.unsqueeze(1), columns] = done
    return back.float()


def upper(h: Tensor) -> Tensor:
    """M of H = M D Mᵀ, unit upper triangular, column by column from the last."""
    size = len(h)
    m, rest = torch.eye(size, dtype=h.dtype), h.clone()
    for j in reversed(range(size)):
        m[:j, j] = rest[:j, j] / rest[j, j]
        rest[:j, :j] -= torch.outer(m[:j, j], m[:j, j]) * rest[j, j]
    return m


def differing(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().gt(1e-4).float().mean())


def test_it_is_entry_by_entry_what_the_definition_says(case: tuple[Tensor, Guided, Fisher]) -> None:
    w, x, g = case
    result = yaqa(Dense(values=w), x, g, bits=3, group=16, damp=DAMP, damp_out=DAMP_OUT)
    assert differing(result.dense(), oracle(w, x, g, result.scale.float().repeat_interleave(16, 1))) < 0.01


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param({"h_in": lambda h: torch.eye(INPUTS)}, id="no Gram"),
        pytest.param({"h_out": lambda h: torch.eye(OUTPUTS)}, id="no Fisher"),
        pytest.param({"h_in": lambda h: h.flip(0, 1)}, id="Gram of other columns"),
        pytest.param({"h_out": lambda h: h.roll((1, 1), (0, 1))}, id="Fisher off by one"),
        pytest.param({"damps": (0.5, DAMP_OUT)}, id="damping of the inputs wrong"),
        pytest.param({"damps": (DAMP, 1e-6)}, id="damping of the outputs missing"),
        pytest.param({"shift": 1}, id="group off by one"),
    ],
)
def test_wrong_versions_are_told_apart(case: tuple[Tensor, Guided, Fisher], wrong: dict[str, object]) -> None:
    w, x, g = case
    result = yaqa(Dense(values=w), x, g, bits=3, group=16, damp=DAMP, damp_out=DAMP_OUT)
    scale = result.scale.float().repeat_interleave(16, 1)
    assert differing(result.dense(), oracle(w, x, g, scale, **wrong)) > 0.03  # type: ignore[arg-type]


def test_with_outputs_that_matter_alike_it_is_gptq(case: tuple[Tensor, Guided, Fisher]) -> None:
    w, x, _ = case
    alone = gptq(Dense(values=w), Gram(x.n, x.xtx, x.sum), bits=3, group=16)
    both = yaqa(Dense(values=w), x, Fisher.blank(OUTPUTS), bits=3, group=16, damp_out=0.0)
    assert differing(alone.dense(), both.dense()) < 0.01


def test_what_the_loss_says_makes_the_predicted_divergence_smaller(case: tuple[Tensor, Guided, Fisher]) -> None:
    w, x, g = case
    alone = gptq(Dense(values=w), Gram(x.n, x.xtx, x.sum), bits=3, group=16).dense()
    assert objective(w - yaqa(Dense(values=w), x, g, bits=3, group=16).dense(), x, g) < 0.8 * objective(w - alone, x, g)


def test_tiles_do_not_change_the_result() -> None:
    """200 by 300 crosses borders between tiles in both directions; with one tile there are none."""
    from lissom.techniques.wavefront import sweep_both

    generator = torch.Generator().manual_seed(9)
    w, h, g = (torch.randn(*size, generator=generator) for size in ((200, 300), (400, 300), (300, 200)))
    h, g = h.T @ h / 400, g.T @ g / 300
    orders = {"rows": order(g.diagonal(), True), "columns": order(h.diagonal(), True)}
    one, many = (
        sweep_both(w, h, g, lambda v, r, c: v.round(), damp=0.01, damp_out=0.01, tile=tile, **orders)
        for tile in (512, 128)
    )
    assert differing(one, many) < 0.005


def test_pruned_weights_stay_zero(case: tuple[Tensor, Guided, Fisher]) -> None:
    w, x, g = case
    pruned = magnitude(Dense(values=w), sparsity=0.5)
    assert torch.equal(yaqa(pruned, x, g, bits=4, group=16).dense() == 0, pruned.dense() == 0)
