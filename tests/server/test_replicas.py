"""Replicas under Ray Serve, for real: killed and updated while they are asked."""

import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from lissom.server.replicas import Replicas

URL = "http://127.0.0.1:8000"
CLUSTER = """
import sys
import ray
from ray import serve
from lissom.server.replicas import Replicas, build
ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
for line in sys.stdin:
    word, _, folder = line.strip().partition(" ")
    if word == "up":
        told = Replicas(folder=folder, name="small", at_once=4, least=2, most=2, cores=0.5)
        serve.run(build(told), name="it", route_prefix="/")
    else:
        name = next(one["name"] for one in ray.util.list_named_actors(all_namespaces=True) if "REPLICA" in one["name"])
        ray.kill(ray.get_actor(name, namespace="serve"), no_restart=False)
    print("done", flush=True)
serve.shutdown()
ray.shutdown()
"""


@pytest.fixture
def cluster(root: Path) -> Iterator[Callable[[str], None]]:
    """A cluster in a process of its own, that does what it is told."""
    pytest.importorskip("ray.serve", reason="needs Ray Serve: pip install lissom[ray]")
    environment = {**os.environ, "PYTHONPATH": str(root)}
    with subprocess.Popen(
        [sys.executable, "-c", CLUSTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:

        def told(line: str) -> None:
            assert process.stdin is not None
            assert process.stdout is not None
            print(line, file=process.stdin, flush=True)
            while (said := process.stdout.readline()) != "done\n":
                assert said, "the cluster has ended"

        yield told
        assert process.stdin is not None
        process.stdin.close()
        process.wait(60)


@contextmanager
def asked(seen: Counter[int]) -> Iterator[None]:
    """While it lasts four clients ask, and count what they are told."""
    done = threading.Event()
    body = {"model": "small", "prompt": "Once upon", "max_tokens": 32, "ignore_eos": True}

    def ask() -> None:
        while not done.is_set():
            seen[httpx.post(f"{URL}/v1/completions", json=body, timeout=60).status_code] += 1

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    yield
    done.set()
    for thread in threads:
        thread.join()


def test_a_replica_is_killed_and_all_are_updated(
    cluster: Callable[[str], None], demo_folder: Path, tmp_path: Path
) -> None:
    cluster(f"up {demo_folder}")
    seen = Counter[int]()
    with asked(seen):
        time.sleep(3)
        cluster("kill")
        time.sleep(6)
    assert set(seen) <= {200, 500}
    assert seen[500] <= 4  # what was in flight there
    assert seen[200] > 20
    seen.clear()
    with asked(seen):
        cluster(f"up {shutil.copytree(demo_folder, tmp_path / 'another')}")
    assert set(seen) == {200}


def test_what_no_config_may_say(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="replica"):
        Replicas(folder="small", replica=3)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="at_once"):
        Replicas(folder="small", at_once=0)
