"""What is heard on the way back from the loss, against derivatives taken one example at a time."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lissom.artifact import open_folder
from lissom.calibrate.gradients import LARGEST, Heard, end_loss, hear, outputs
from lissom.calibrate.observe import observe
from lissom.calibrate.stream import Stream
from lissom.compress.layers import listen
from lissom.models import Checkpoint, compressible
from lissom.statistics import Fisher, Guided


def heard_of(model: nn.Module, x: Tensor, loss: Any) -> dict[str, Heard]:
    heard: dict[str, Heard] = {}
    with outputs(compressible(model)) as taken:
        hear(heard, taken, loss(model(x)), new=Heard.of)
    return heard


def test_a_linear_layer_is_heard_row_by_row() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)), torch.randn(7, 5)
    found = heard_of(model, x, lambda y: y.square().sum())
    fisher, weights = torch.zeros(4, 4), []
    for row in x:
        y = model[0](row).detach().requires_grad_()
        (g,) = torch.autograd.grad(model[2](y.tanh()).square().sum(), y)
        fisher += torch.outer(g, g) * row.square().mean()
        weights.append(g.square().mean())
    torch.testing.assert_close(found["0"].fisher.ggt, fisher)
    torch.testing.assert_close(torch.cat(found["0"].parts), torch.stack(weights))
    assert found["0"].fisher.n == 7
    assert found["0"].weights().mean() == pytest.approx(1, rel=1e-5)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution_is_heard_place_by_place(groups: int) -> None:
    """The weights must come in the order of the rows that observation makes of the same input."""
    torch.manual_seed(1)
    conv = nn.Conv2d(4, 6, 3, padding=1, groups=groups)
    x, loud = torch.randn(2, 4, 5, 5), torch.zeros(2, 6, 5, 5)
    loud[1, 4, 2, 3] = 2.0  # one output alone matters
    found = heard_of(nn.Sequential(conv), x, lambda y: (y * loud).sum())["0"]
    group = 4 * groups // 6
    expected = torch.zeros(2, groups, 5, 5)
    expected[1, group, 2, 3] = 4.0 / (6 // groups)
    torch.testing.assert_close(torch.cat(found.parts), expected.flatten())
    patch = nn.functional.unfold(x[1:], 3, padding=1).unflatten(0, (1, 1)).reshape(36, 25)[:, 13]
    torch.testing.assert_close(found.fisher.ggt[4, 4], 4 * patch.square().mean())
    assert int((found.fisher.ggt != 0).sum()) == 1


def test_what_follows_in_place_does_not_change_what_is_heard() -> None:
    torch.manual_seed(2)
    layer, x = nn.Linear(5, 4), torch.randn(9, 5)
    inside, beside = (heard_of(nn.Sequential(layer, nn.ReLU(inplace)), x, torch.sum) for inplace in (True, False))
    torch.testing.assert_close(inside["0"].fisher.ggt, beside["0"].fisher.ggt)


def test_no_row_outweighs_all_others() -> None:
    heard = Heard(Fisher.zero(1), [torch.tensor([1e9] + [1.0] * 999)])
    assert heard.weights().max() == LARGEST


def test_of_class_scores_the_second_moment_is_the_fisher_information() -> None:
    """Over many draws that of the softmax, diag(p) - p pᵀ."""
    logits = torch.tensor([[2.0, 0.0, -1.0]]).expand(20_000, 3).clone().requires_grad_()
    (g,) = torch.autograd.grad(end_loss(logits, True, torch.Generator().manual_seed(0)), logits)
    p = logits[0].detach().softmax(-1)
    torch.testing.assert_close(g.T @ g / len(g), p.diag() - torch.outer(p, p), atol=0.01, rtol=0)


def test_what_hardly_ever_happens_is_felt_in_every_draw() -> None:
    """Of two classes, one nearly sure, all draws are about as long as they are on the average."""
    logits = torch.tensor([[8.0, 0.0]]).expand(100, 2).clone().requires_grad_()
    (g,) = torch.autograd.grad(end_loss(logits, True, torch.Generator().manual_seed(0)), logits)
    p, q = logits[0].detach().softmax(-1)
    torch.testing.assert_close(g[:, 0].square(), (p * q).expand(100), rtol=0.05, atol=0)


def test_of_other_outputs_the_second_moment_is_gauss_newton() -> None:
    x = torch.randn(1, 3).expand(20_000, 3).clone().requires_grad_()
    jacobian = torch.randn(2, 3, generator=torch.Generator().manual_seed(1))
    (g,) = torch.autograd.grad(end_loss(x @ jacobian.T, False, torch.Generator().manual_seed(2)), x)
    torch.testing.assert_close(g.T @ g / len(g), jacobian.T @ jacobian, atol=0.1, rtol=0.05)


def test_weights_reach_the_guided_gram_in_their_order() -> None:
    layer, x = nn.Linear(3, 2), torch.randn(6, 3)
    weights = torch.rand(6)
    with observe({"layer": layer}, {"layer": {Guided}}, {"layer": weights}) as collected:
        layer(x[:4])
        layer(x[4:])
    gram = collected["layer"][Guided]
    assert isinstance(gram, Guided)
    torch.testing.assert_close(gram.xtx, x.T @ weights.diag() @ x)
    assert gram.n == 6


def test_a_stream_hears_what_the_whole_model_does(demo_folder: Path) -> None:
    opened = open_folder(demo_folder)
    windows = torch.randint(5, 500, (3, 24), generator=torch.Generator().manual_seed(3))
    stream = Stream(Checkpoint(demo_folder), windows, batch=1)
    names = [name for name in compressible(opened.model) if name != "model.embed_tokens"]
    streamed = stream.listen(stream.embedding(), names)
    layers = {name: opened.model.get_submodule(name) for name in names}
    whole = listen(opened.model, layers, [{"input_ids": window.unsqueeze(0)} for window in windows])
    assert set(streamed) == set(whole) == set(names)
    for name in names:
        torch.testing.assert_close(streamed[name].weights(), whole[name].weights(), rtol=1e-3, atol=1e-4)
        scale = float(whole[name].fisher.ggt.abs().max())
        torch.testing.assert_close(streamed[name].fisher.ggt, whole[name].fisher.ggt, rtol=0, atol=1e-3 * scale)
