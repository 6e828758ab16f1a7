"""Groups of processes, as threads of this one or as processes of their own."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

PATIENCE_S = 120


@pytest.fixture
def together() -> Callable[..., list[Any]]:
    """What `act(group)` returns in each of n threads, whose groups can speak with one another."""

    def run(n: int, act: Callable[[dist.ProcessGroup], Any]) -> list[Any]:
        store, found = dist.HashStore(), [None] * n

        def one(rank: int) -> None:
            group, kind = dist.ProcessGroup(store, rank, n), dist.ProcessGroup.BackendType.GLOO
            gloo = dist.ProcessGroupGloo(dist.PrefixStore("gloo", store), rank, n, timedelta(seconds=PATIENCE_S))
            group._set_default_backend(kind)
            group._register_backend(torch.device("cpu"), kind, gloo)
            found[rank] = act(group)

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(n)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
        return found

    return run


@pytest.fixture(scope="session")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[Any]]:
    """What a case of a file of cases prints last, as JSON, in each of n processes."""

    def run(n: int, file: Path, *words: object) -> list[Any]:
        meeting = tmp_path_factory.mktemp("meeting") / "place"
        command = [sys.executable, str(file), str(meeting), str(n)]
        started = [
            subprocess.Popen(
                [*command, str(rank), *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            for rank in range(n)
        ]
        said = [process.communicate(timeout=PATIENCE_S) for process in started]
        assert [process.returncode for process in started] == [0] * n, said
        return [json.loads(out.splitlines()[-1]) for out, _ in said]

    return run
