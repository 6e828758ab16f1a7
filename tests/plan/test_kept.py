"""What a block keeps for the way back, as it is foreseen and as PyTorch keeps it."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from lissom.artifact.reading import build_language_model
from lissom.compress import compress_model
from lissom.formats import unfreeze
from lissom.plan.reading import read_shapes
from lissom.plan.shapes import GRID
from lissom.recover.model import learnable
from lissom.recover.moving import units_of


@pytest.mark.parametrize("width", [2, 4])
def test_a_block_keeps_what_is_foreseen(demo_folder: Path, width: int) -> None:
    steps = [{"layers": "model.layers.1.*", "technique": "rtn", "bits": 4, "group": 64}]
    model = unfreeze(compress_model(build_language_model(demo_folder, {}), steps=steps))
    units_of(model)
    shapes, block = read_shapes(demo_folder), model.get_submodule("model.layers.1")
    own = {part.untyped_storage().data_ptr() for part in (*model.parameters(), *model.buffers())}
    met: list[tuple[tuple[Tensor, ...], dict[str, object]]] = []

    def kept(windows: int) -> int:
        """Bytes that a block leaves, of nothing but what it computes."""
        hook = block.register_forward_pre_hook(lambda part, args, named: met.append((args, named)), with_kwargs=True)
        with torch.no_grad(), learnable(model):
            model(torch.zeros(windows, 16, dtype=torch.long))
        hook.remove()
        (x,), named = met.pop()
        held: dict[int, Tensor] = {}

        def keep(tensor: Tensor) -> Tensor:
            if tensor.untyped_storage().data_ptr() not in own:
                held[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        x = x.detach().requires_grad_()
        half = torch.autocast("cpu", torch.bfloat16, enabled=width == 2)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), half:
            block(x, **named)
        return sum(tensor.untyped_storage().nbytes() for tensor in held.values())

    few, many = kept(2), kept(6)
    each = (many - few) / (4 * 16)
    assert shapes.kept_bytes(width) == pytest.approx(each, rel=0.02)
    assert (GRID + width) * shapes.block_weights == pytest.approx(few - 2 * 16 * each, rel=0.02)
