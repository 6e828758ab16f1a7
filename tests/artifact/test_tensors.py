"""Tensors by name: what lies in one memory is written all the same."""

from pathlib import Path

import torch

from lissom.artifact.tensors import apart, read_tensors, write_tensors


def test_tensors_that_share_memory_are_written_and_the_others_not_copied(tmp_path: Path) -> None:
    whole, alone = torch.arange(8.0), torch.ones(3)
    tensors = {"whole": whole, "part": whole[2:6], "same": whole, "alone": alone}
    write_tensors(tmp_path / "model.safetensors", tensors)
    found = read_tensors(tmp_path)
    assert set(found) == set(tensors)
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    kept = apart(tensors)
    assert kept["whole"].data_ptr() == whole.data_ptr()
    assert kept["alone"].data_ptr() == alone.data_ptr()
    assert len({tensor.data_ptr() for tensor in kept.values()}) == 4
