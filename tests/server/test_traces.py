"""Traces: a span for each request reaches a collector, as a child of its client's; nothing of what was said does."""

import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

import lissom
from lissom.errors import DataError
from lissom.server.traces import traced

PATIENCE = 60
TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture
def collector() -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """A collector of traces, and what has come to it."""
    came = list[tuple[str, bytes]]()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            came.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", came
        server.shutdown()
        thread.join()


def test_requests_are_traced(root: Path, tmp_path: Path, collector: tuple[str, list[tuple[str, bytes]]]) -> None:
    pytest.importorskip("opentelemetry.instrumentation.asgi", reason="needs OpenTelemetry")
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="needs OpenTelemetry")
    place, came = collector
    folder = lissom.save(torch.nn.Sequential(torch.nn.Linear(3, 2)), tmp_path / "net", example=torch.randn(2, 3))
    command = [sys.executable, "-m", "lissom.cli", "serve", str(folder), "--port", "0", "--api-key", "the-secret"]
    environment = {**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": place}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root, env=environment) as server:
        assert server.stdout is not None
        url = server.stdout.readline().split()[-1]
        tensor = {"name": "input", "datatype": "FP32", "shape": [1, 3], "data": [1.25, 2.5, 5.125]}
        headers = {"Authorization": "Bearer the-secret", "traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
        answer = httpx.post(f"{url}/v2/models/net/infer", json={"inputs": [tensor]}, headers=headers, timeout=PATIENCE)
        assert answer.status_code == 200
        httpx.get(f"{url}/health/live")
        server.terminate()  # what has not been sent is sent at the end
        assert server.wait(PATIENCE) == 0
    assert {path for path, _ in came} == {"/v1/traces"}
    sent = b"".join(body for _, body in came)
    assert bytes.fromhex(TRACE) in sent
    assert b"/v2/models/" in sent
    for absent in (b"the-secret", b"5.125", b"health"):
        assert absent not in sent


def test_without_the_environment_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    async def app(*_: Any) -> None:
        """Nothing."""

    with traced(app) as same:
        assert same is app
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(DataError, match=r"pip install 'lissom\[trace\]'"), traced(app):
        pass
