"""Hidden states that wait on disk: a file that is mapped into memory, of which only what is being used stays there.

The file has no name: it is gone when nobody uses it any more, also if the program is killed.

Shapes: n windows, t tokens, h hidden.
"""

import mmap
import os
import tempfile
import weakref
from collections.abc import Iterable
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from lissom.errors import DataError


class Spill:
    """Room for hidden states in files.

    `forget` lets go of what of the files is in memory; their content stays, for the mapping is shared with the disk.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._maps = weakref.WeakSet[mmap.mmap]()

    def empty(self, shape: tuple[int, ...], floats: torch.dtype) -> Float[Tensor, "..."]:
        """Room for hidden states of a type, in a file.

        Raises:
            DataError: the disk has no such room.
        """
        count = torch.Size(shape).numel()
        with tempfile.TemporaryFile(dir=self.folder) as file:
            try:
                reserve(file.fileno(), count * floats.itemsize)
            except OSError as error:
                raise DataError(
                    f"{count * floats.itemsize / 1e9:.2f} GB of hidden states do not fit on the disk of "
                    f"{self.folder or tempfile.gettempdir()} ({error.strerror}); make room there, set TMPDIR to a "
                    "larger one, or give fewer windows"
                ) from None
            mapped = mmap.mmap(file.fileno(), 0)
        self._maps.add(mapped)
        return torch.frombuffer(mapped, dtype=floats, count=count).view(shape)

    def forget(self) -> None:
        """Keep nothing of the files in memory that the disk has too."""
        for mapped in self._maps:
            mapped.madvise(mmap.MADV_DONTNEED)


def reserve(file: int, nbytes: int) -> None:
    """Make an empty file as long as that, its blocks set apart where the system can: a full disk is told now."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, nbytes)
    else:
        os.truncate(file, nbytes)


def joined(lots: Iterable[Float[Tensor, "b ..."]], count: int, spill: Spill | None = None) -> Float[Tensor, "n ..."]:
    """The lots one after another, on disk if so wished; in memory they are written where they will stay."""
    found, done = torch.empty(0), 0
    for lot in lots:
        if not len(found):
            shape = (count, *lot.shape[1:])
            found = lot.new_empty(shape) if spill is None else spill.empty(shape, lot.dtype)
        found[done : done + len(lot)] = lot
        done += len(lot)
        if spill is not None:
            spill.forget()
    return found
