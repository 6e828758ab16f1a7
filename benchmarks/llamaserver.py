"""llama.cpp's server, asked for the log-probabilities of what may come next, place by place."""

import json
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

LEAST = -30.0  # the log-probability of what is not named
PATIENCE_S = 60


@contextmanager
def serving(program: Path, model: Path) -> Iterator[str]:
    """The address of the server, while it has a model; with float32 for keys and values, as the model has."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [program, "-m", model, "--port", port, "-c", 1024, "-np", 1, "-ctk", "f32", "-ctv", "f32", "-fa", "off"]
    with subprocess.Popen(
        [str(word) for word in words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as server:
        try:
            wait(f"http://127.0.0.1:{port}", server)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()


def wait(url: str, server: subprocess.Popen[bytes]) -> None:
    """Until it answers.

    Raises:
        RuntimeError: it has ended, or takes too long.
    """
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until and server.poll() is None:
        with suppress(OSError), urllib.request.urlopen(f"{url}/health"):
            return
        time.sleep(0.1)
    raise RuntimeError(f"llama-server does not answer (exit status {server.poll()})")


def asked(url: str, tokens: Sequence[int], **more: Any) -> dict[str, Any]:
    """The answer to a request for one token behind others."""
    body = {"prompt": tokens, "n_predict": 1, "temperature": 0, **more}
    request = urllib.request.Request(
        f"{url}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as answer:
        told: dict[str, Any] = json.load(answer)
    return told


def logits(url: str, windows: np.ndarray, size: int) -> np.ndarray:
    """The log-probabilities of all tokens after each place of windows."""
    found = np.full((*windows.shape, size), LEAST, dtype=np.float32)
    for window, rows in zip(windows.tolist(), found, strict=True):
        for place, row in enumerate(rows):
            answer = asked(url, window[: place + 1], n_probs=size, cache_prompt=True)
            for one in answer["completion_probabilities"][0]["top_logprobs"]:
                row[one["id"]] = one["logprob"]
    return found


def read(url: str, windows: np.ndarray) -> None:
    """Let it read windows, one after another, and write one token behind each."""
    for window in windows.tolist():
        asked(url, window, cache_prompt=False)
