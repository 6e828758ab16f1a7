"""Targets against compressed-tensors' own matching, and wildcards against what they name."""

from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
from compressed_tensors.utils import match_named_modules
from torch import nn

from lissom.compress.sparseml.layers import Layers, by_prefix, wildcards
from lissom.compress.sparseml.recipe import layers_of
from lissom.errors import RecipeError

TARGETS: list[tuple[list[str], list[str]]] = [
    (["Linear"], ["lm_head"]),
    (["Linear"], ["re:.*lm_head", "re:.*mlp.*"]),
    (["re:.*self_attn.*"], []),
    (["re:model.layers.0"], ["model.layers.0.mlp.up_proj"]),
    (["model.layers.1.mlp.down_proj", "re:.*q_proj"], []),
    (["Linear", "Embedding"], []),
]


@pytest.fixture
def layers(tiny: Callable[..., Path]) -> Layers:
    return layers_of(tiny("llama"))


@pytest.mark.parametrize(("targets", "ignore"), TARGETS)
def test_targets_mean_what_they_mean_there(layers: Layers, targets: list[str], ignore: list[str]) -> None:
    theirs = {name for name, _ in match_named_modules(layers.model, targets, ignore)} & set(layers.names)
    found = layers.meant(targets, ignore)
    assert set(found) == theirs
    patterns = layers.groups(found)
    named = [name for pattern in patterns for name in layers.names if fnmatchcase(name, pattern)]
    assert sorted(named) == sorted(found)


def test_modules_and_parameters_are_named_too(layers: Layers) -> None:
    assert layers.groups(layers.meant("re:model.layers.1$", inside=True)) == ["model.layers.1.*"]
    assert layers.groups(layers.meant("LlamaDecoderLayer", inside=True)) == ["model.layers.*"]
    assert layers.meant("re:.*up_proj.weight") == [f"model.layers.{n}.mlp.up_proj" for n in range(2)]
    assert layers.groups(layers.meant("__ALL__")) == ["*"]


def test_the_words_for_all_stand_for_classes() -> None:
    model = nn.Sequential(nn.Embedding(4, 4), nn.Linear(4, 4), nn.Conv1d(4, 4, 1), nn.Conv2d(4, 4, 1))
    layers = layers_of(model)
    assert layers.meant("__ALL_PRUNABLE__") == ["1", "2", "3"]
    assert layers.meant("__ALL_QUANTIZABLE__") == ["1", "3"]


def test_wildcards_are_few() -> None:
    names = [f"blocks.{n}.{part}.{own}" for n in range(12) for part in ("a", "b") for own in ("x", "y")] + ["head"]
    assert wildcards(names[:-1], names) == ["blocks.*"]
    assert wildcards([name for name in names if name.endswith(".x")], names) == ["*.x"]
    assert wildcards([name for name in names if ".a." in name], names) == ["blocks.*.a.*"]
    assert wildcards([name for name in names if ".3." in name], names) == ["blocks.3.*"]
    assert wildcards(["blocks.1.a.x"], names) == ["blocks.1.a.x"]


def test_how_names_begin() -> None:
    named = by_prefix(["classifier", "Conv2d"])
    assert named("classifier.1", nn.Linear(1, 1))
    assert named("features.0", nn.Conv2d(1, 1, 1))
    assert not named("features.1", nn.Linear(1, 1))


@pytest.mark.parametrize(
    ("targets", "message"),
    [("re:(", "is no expression"), (["nowhere"], "nowhere name no layer"), ([3], "3 is no name")],
)
def test_targets_that_name_nothing_are_refused(layers: Layers, targets: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        layers.meant(targets)
