"""Calibration on several processes."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

import lissom
from lissom.calibrate.merge import merge_all, merge_layers
from lissom.errors import RecipeError
from lissom.formats import CompressedLayer
from lissom.models import compressible
from lissom.statistics import Gram, Guided, Moments, Statistic

Together = Callable[..., list[Any]]
GPTQ = [{"technique": "sparsegpt", "sparsity": 0.5}, {"technique": "gptq", "bits": 4, "group": 8}]


@pytest.mark.parametrize("kind", [Moments, Gram, Guided])
@pytest.mark.parametrize("n", [2, 3])
def test_all_have_the_statistic_of_all_the_data(together: Together, kind: type[Statistic], n: int) -> None:
    x = torch.randn(31, 6) * torch.arange(1, 7)

    def act(group: dist.ProcessGroup) -> list[Statistic]:
        both = [kind.zero(6), kind.zero(6)]
        both[0].see(x[group.rank() :: n])
        both[1].see(2 * x[group.rank() :: n])
        merge_all([*both, both[0]], group)  # the same one once more, as layers have that share one
        return both

    whole = [kind.zero(6), kind.zero(6)]
    for part in range(n):
        whole[0].see(x[part::n])
        whole[1].see(2 * x[part::n])
    for found in together(n, act):
        for one, expected in zip(found, whole, strict=True):
            assert one.n == expected.n == 31
            for name in ("sum", "square", "largest", "xtx"):
                if hasattr(expected, name):
                    assert torch.allclose(getattr(one, name), getattr(expected, name), rtol=1e-5, atol=1e-4), name


def test_several_compress_to_what_one_does(together: Together) -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    x = torch.randn(60, 8)
    one = lissom.compress_model(model, x, steps=GPTQ)
    models = [copy.deepcopy(model) for _ in range(2)]
    several = together(
        2, lambda group: lissom.compress_model(models[group.rank()], x[group.rank() :: 2], steps=GPTQ, group=group)
    )
    for name, layer in compressible(one).items():
        assert isinstance(layer, CompressedLayer)
        for other in several:
            assert torch.allclose(compressible(other)[name].weight.dense(), layer.weight.dense(), atol=1e-3), name  # type: ignore[union-attr, operator]


def test_what_only_some_processes_have_seen_is_merged(together: Together) -> None:
    layers, kinds = {"a": nn.Linear(6, 2), "b": nn.Linear(6, 3)}, {name: {Gram, Moments} for name in "ab"}
    x = torch.randn(40, 6)

    def act(group: dist.ProcessGroup) -> dict[str, Any]:
        own = {kind: kind.zero(6) for kind in (Gram, Moments)}
        for statistic in own.values():
            statistic.see(x[20 * group.rank() :][:20])
        found = {"a": own, "b": own} if group.rank() == 0 else {"a": own}  # one statistic for both, as siblings have
        merge_layers(found, layers, kinds, group)
        return {name: (one[Gram].xtx, one[Gram].n, one[Moments].largest) for name, one in found.items()}  # type: ignore[attr-defined]

    for found in together(2, act):
        for name, seen in {"a": x, "b": x[:20]}.items():
            xtx, n, largest = found[name]
            torch.testing.assert_close(xtx, seen.T @ seen)
            assert n == len(seen)
            torch.testing.assert_close(largest, seen.abs().amax(0))


def test_what_cannot_be_merged_is_refused(together: Together) -> None:
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), torch.randn(8, 4)

    def act(group: dist.ProcessGroup) -> list[str]:
        told = []
        for steps in ([{"technique": "yaqa", "bits": 4}], [{"technique": "rtn", "bits": 4}, {"technique": "distil"}]):
            with pytest.raises(RecipeError) as error:
                lissom.compress_model(model, x, steps=steps, group=group)
            told.append(str(error.value))
        return told

    for told in together(1, act):
        assert "not merged" in told[0]
        assert "learns is for one process" in told[1]
