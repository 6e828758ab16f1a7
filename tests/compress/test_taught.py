"""What the original says is asked for when it is needed, and kept while there is room."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from lissom.compress.layers import said
from lissom.compress.taught import Taught
from lissom.errors import DataError


class Asked(nn.Module):
    """Doubles what it is given, and counts how often."""

    def __init__(self) -> None:
        super().__init__()
        self.times = 0

    def forward(self, x: Tensor) -> Tensor:
        self.times += 1
        return 2 * x


def lots(room: int = 2**30) -> tuple[Taught, Any, Any]:
    model, original = nn.Linear(4, 4), Asked()
    data = [torch.full((2, 4), float(n)) for n in range(3)]
    return Taught(model=model, original=original, data=data, room=room), model, original


def test_nothing_is_asked_before_it_is_needed_and_nothing_twice() -> None:
    taught, model, original = lots()
    assert (len(taught), original.times) == (3, 0)
    for _ in range(2):
        for n, (run, wanted) in enumerate(taught):
            assert torch.equal(wanted, torch.full((2, 4), 2.0 * n))
            assert torch.equal(run(), model(taught.data[n]))
    assert original.times == 3


def test_answers_for_which_there_is_no_room_are_asked_for_again() -> None:
    taught, _, original = lots(room=2 * 32)
    for _ in range(2):
        assert [float(wanted[0, 0]) for _, wanted in taught] == [0.0, 2.0, 4.0]
    assert (original.times, sorted(taught.kept)) == (4, [0, 1])


def test_a_part_of_the_lots_asks_for_no_more_than_it_holds() -> None:
    taught, _, original = lots()
    part = taught[1:]
    assert (len(part), original.times) == (2, 0)
    assert float(part[-1][1][0, 0]) == 4.0
    assert original.times == 1


def test_answers_want_no_gradients() -> None:
    model = nn.Linear(4, 4)
    run, wanted = Taught.of(model, model, torch.ones(2, 4))[0]
    assert run().requires_grad
    assert not wanted.requires_grad


def test_no_data_is_no_lots() -> None:
    assert len(Taught.of(nn.Linear(4, 4), nn.Linear(4, 4), None)) == 0


def test_of_outputs_with_names_all_are_one() -> None:
    model, boxes, marks = nn.Identity(), torch.randn(3, 4, 2), torch.randn(3)
    made = said(model, {"boxes": boxes, "classes": torch.zeros(3, dtype=torch.long), "marks": marks})
    assert torch.equal(made, torch.cat([boxes.flatten(1), marks.unsqueeze(1)], 1))
    assert said(model, {"boxes": boxes, "logits": marks}) is marks
    assert said(model, BaseModelOutputWithPooling(last_hidden_state=boxes, pooler_output=marks)) is boxes
    with pytest.raises(DataError, match="Identity gives dict, in which no tensor can be found"):
        said(model, {"text": "none"})
