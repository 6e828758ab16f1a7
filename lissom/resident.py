"""What a process keeps in memory: not what is free already, and no code that only its beginning needed.

To import PyTorch runs through much of its code once, that enters every operator in tables. On other systems than Linux
nothing is done here.
"""

import ctypes
import mmap
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

MAPS = Path("/proc/self/smaps")
READ_ONLY = ("r-xp", "r--p")  # code and constants, which are this process's own as soon as something writes to them


def settle() -> None:
    """Let go of free memory, and of all files that are mapped only to be read.

    What is read of these again is there at once, for the system has it in memory as long as it has room.
    """
    give_back()
    if sys.platform == "linux":
        advise = ctypes.CDLL(None).madvise
        with suppress(OSError):  # not everywhere may a process look at itself
            for begin, end in untouched(MAPS.read_text(encoding="utf-8").splitlines()):
                advise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), mmap.MADV_DONTNEED)


def give_back() -> None:
    """Return to the system what is free already; glibc keeps it, in holes that the next block does not quite fit."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # not in every C library
        if trim is not None:
            trim(0)


def untouched(maps: Iterable[str]) -> Iterator[tuple[int, int]]:
    """Where parts of files are that are as they are on disk, by the lines of smaps; addresses from and to.

    What a loader has put into a library is only in memory, also where nobody may write to it any more.
    """
    place = (0, 0)
    for line in maps:
        first, *rest = line.split(maxsplit=5)
        if not first.endswith(":"):
            begin, _, end = first.partition("-")
            file = len(rest) == 5 and rest[4].startswith("/")
            place = (int(begin, 16), int(end, 16)) if file and rest[0] in READ_ONLY else (0, 0)
        elif first == "Anonymous:" and rest[0] == "0" and place[1]:
            yield place
