"""What a process lets go of, and that it is there again where it is read."""

import ctypes
import mmap
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lissom.resident import MAPS, settle, untouched

SIZE = 64 * mmap.PAGESIZE
LIBC = ctypes.CDLL(None)
linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux says what a process has in memory, part by part")
SMAPS = """\
55d0a1000000-55d0a1002000 r--p 00000000 08:01 11 /usr/bin/some program
Rss:                   8 kB
Anonymous:             0 kB
VmFlags: rd mr mw me
55d0a1002000-55d0a1003000 r-xp 00002000 08:01 11 /usr/bin/some program
Anonymous:             0 kB
7f0000000000-7f0000004000 r--p 00004000 08:01 12 /usr/lib/relocated.so
Anonymous:             4 kB
7f0000004000-7f0000005000 rw-p 00008000 08:01 12 /usr/lib/relocated.so
Anonymous:             0 kB
7f0000005000-7f0000006000 r--s 00000000 08:01 13 /usr/lib/shared
Anonymous:             0 kB
7f0000006000-7f0000007000 r--p 00000000 00:00 0
Anonymous:             0 kB
7fff00000000-7fff00002000 r-xp 00000000 00:00 0                          [vdso]
Anonymous:             0 kB
"""


def test_only_what_is_as_on_disk_and_read_only_is_let_go_of() -> None:
    assert list(untouched(SMAPS.splitlines())) == [(0x55D0A1000000, 0x55D0A1002000), (0x55D0A1002000, 0x55D0A1003000)]


@pytest.fixture
def mapped(tmp_path: Path) -> Iterator[tuple[mmap.mmap, int]]:
    """A file as a loader maps libraries, and its address."""
    file = tmp_path / "file"
    file.write_bytes(b"a" * SIZE)
    with file.open("rb") as opened:
        made = mmap.mmap(opened.fileno(), SIZE, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    place = ctypes.c_char.from_buffer(made)
    address = ctypes.addressof(place)
    del place
    yield made, address
    made.close()


def resident(address: int) -> int:
    """Kilobytes in memory of what is mapped there."""
    lines = iter(MAPS.read_text(encoding="utf-8").splitlines())
    next(line for line in lines if line.startswith(f"{address:x}-"))
    return int(next(line for line in lines if line.startswith("Rss:")).split()[1])


def protect(address: int) -> None:
    """From now on it can only be read."""
    assert LIBC.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(SIZE), mmap.PROT_READ) == 0


@linux
def test_a_file_that_is_only_read_leaves_memory_and_comes_back(mapped: tuple[mmap.mmap, int]) -> None:
    made, address = mapped
    protect(address)
    assert made[:] == b"a" * SIZE
    assert resident(address) == SIZE // 1024
    settle()
    assert resident(address) == 0
    assert made[:] == b"a" * SIZE


@linux
@pytest.mark.parametrize("protected", [True, False])
def test_what_was_written_stays(mapped: tuple[mmap.mmap, int], protected: bool) -> None:
    made, address = mapped
    made[mmap.PAGESIZE] = ord("b")
    if protected:
        protect(address)
    settle()
    assert made[mmap.PAGESIZE] == ord("b")


@linux
def test_a_process_that_may_not_look_at_itself_keeps_all(
    mapped: tuple[mmap.mmap, int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made, address = mapped
    protect(address)
    assert made[:] == b"a" * SIZE
    monkeypatch.setattr("lissom.resident.MAPS", tmp_path / "absent")
    settle()
    assert resident(address) == SIZE // 1024
