"""The table of families points at parts that are there."""

from collections.abc import Callable
from operator import attrgetter
from pathlib import Path

import pytest
from torch import nn

from lissom.errors import ModelError
from lissom.models import FAMILIES, Checkpoint, family_of
from lissom.models.families import at, fused_sizes, put

PARTS = ("embedding", "blocks", "rotary", "norm", "head")


@pytest.mark.parametrize("name", FAMILIES)
def test_every_part_of_a_family_is_there(tiny: Callable[..., Path], name: str) -> None:
    checkpoint = Checkpoint(tiny(name))
    model = checkpoint.skeleton()
    parts = {name: at(model, getattr(checkpoint.family, name)) for name in PARTS}
    assert isinstance(parts["embedding"], nn.Embedding)
    assert len(list(parts["blocks"].children())) == 2
    assert isinstance(parts["head"], nn.Linear)
    assert all(buffer.device.type == "cpu" for buffer in parts["rotary"].buffers())
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


@pytest.mark.parametrize("name", FAMILIES)
def test_links_are_between_layers_of_a_block_that_fit(tiny: Callable[..., Path], name: str) -> None:
    checkpoint = Checkpoint(tiny(name))
    model, block = checkpoint.skeleton(), f"{checkpoint.family.blocks}.1"
    for link in (link.inside(block) for link in checkpoint.family.links):
        (inputs,) = {at(model, reader).weight.shape[1] for reader in link.readers}
        made = [fused_sizes(at(model, maker).weight.shape[0], inputs, link.fused) for maker in link.makers]
        assert [sum(sizes) for sizes in made] == [at(model, maker).weight.shape[0] for maker in link.makers]
        (channels,) = {sizes[-1] for sizes in made}
        assert inputs % channels == 0
        assert not link.unit or attrgetter(link.unit)(model) == 8


def test_an_unknown_architecture_is_named_with_the_known() -> None:
    with pytest.raises(ModelError, match="unknown architecture 'gpt2'; language models known are llama, mistral"):
        family_of("gpt2")


def test_put_replaces_the_part_that_at_finds() -> None:
    model = nn.Sequential(nn.Sequential(nn.ReLU()))
    put(model, "0.0", nn.Tanh())
    assert isinstance(at(model, "0.0"), nn.Tanh)
