"""The server as a whole: the door, the queue, clients that go away, an engine that fails, and the end."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from lissom.engine import Engine
from lissom.errors import DataError, LissomError, ModelError
from lissom.server import LanguageService, Limits, TensorService, create_app, serve

LONG: dict[str, Any] = {"model": "stories", "prompt": "Once", "max_tokens": 900, "ignore_eos": True}
PATIENCE = 60  # seconds until a test gives up; no result depends on it
SCRIPT = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from lissom.server import LanguageService, Limits, serve
folder, port, grace = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
service = LanguageService(model=model, tokenizer=AutoTokenizer.from_pretrained(folder), name="stories")
def announce(url):
    print(url, flush=True)
serve([service], port=int(port), limits=Limits(grace_seconds=float(grace)), announce=announce)
print("stopped", flush=True)
"""

ALONE = """
import sys, lissom.cli, lissom.models.tokenizer, lissom.server.app
print([name for name in ("torch", "numpy", "jaxtyping", "transformers") if name in sys.modules])
"""


@pytest.fixture
def stories(model: Any, tokenizer: Any) -> LanguageService:
    return LanguageService(model=model, tokenizer=tokenizer, name="stories", max_batch=1)


def gauge(client: httpx.Client, name: str) -> float:
    """A value of /metrics; a counter is there once it has counted."""
    lines = [line for line in client.get("/metrics").text.splitlines() if line.startswith(f"{name}{{")]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def wait_until_idle(client: httpx.Client) -> None:
    for _ in range(PATIENCE * 20):
        if gauge(client, "vllm:num_requests_running") + gauge(client, "vllm:num_requests_waiting") == 0:
            return
        time.sleep(0.05)
    pytest.fail("the request is still running")


@contextmanager
def streaming(client: httpx.Client, **body: Any) -> Iterator[Iterator[str]]:
    """The lines of a stream that has begun."""
    with client.stream("POST", "/v1/completions", json={**LONG, "stream": True, **body}) as answer:
        lines = (line for line in answer.iter_lines() if line)
        next(lines)
        yield lines


def test_every_route_but_health_asks_for_the_key(start: Any, stories: LanguageService) -> None:
    with start(create_app([stories], api_key="secret")) as url, httpx.Client(base_url=url) as client:
        for path in ("/", "/health", "/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready"):
            assert client.get(path).status_code == 200
        for path in ("/v1/models", "/v2", "/metrics", "/nothing", "/health/x", "/v1/completions", "/tokenize"):
            assert client.get(path).status_code == 401
        for wrong in ("Bearer wrong", "Bearer", "secret", "Basic secret"):
            answer = client.get("/v1/models", headers={"Authorization": wrong})
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
        assert client.get("/v1/models", headers={"x-api-key": "wrong"}).status_code == 401
        assert client.post("/v1/messages").json()["error"]["type"] == "authentication_error"
        for right in ({"Authorization": "Bearer secret"}, {"x-api-key": "secret"}):
            assert client.get("/v1/models", headers=right).status_code == 200


def test_every_answer_carries_the_name_of_its_request(http: httpx.Client) -> None:
    for path in ("/health/live", "/nothing", "/v1/models"):
        for given in ("my-1:a.b_C", "x" * 128):
            assert http.get(path, headers={"X-Request-Id": given}).headers["X-Request-Id"] == given
        for strange in ("", "two words", "x" * 129, "\xe9"):
            own = http.get(path, headers={"X-Request-Id": strange.encode("latin-1")}).headers["X-Request-Id"]
            assert len(own) == 32
    assert len({http.get("/health/live").headers["X-Request-Id"] for _ in range(3)}) == 3


def chunks() -> Iterator[bytes]:
    """A body whose length is not announced."""
    for _ in range(64):
        yield b" " * 4096


@pytest.mark.parametrize("content", [b" " * 200_000, chunks()], ids=["announced", "in chunks"])
def test_a_body_over_the_cap_is_refused(start: Any, stories: LanguageService, content: Any) -> None:
    limits = Limits(text_bytes=10_000, tensor_bytes=20_000)
    with start(create_app([stories], limits=limits)) as url, httpx.Client(base_url=url) as client:
        answer = client.post("/v1/completions", content=content)
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")


def test_a_body_that_never_arrives_is_given_up(start: Any, stories: LanguageService) -> None:
    with start(create_app([stories], limits=Limits(body_seconds=0.2))) as url:
        port = int(url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
            connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
            assert connection.recv(1000).startswith(b"HTTP/1.1 408")


def test_a_full_queue_answers_429_at_once_and_recovers(start: Any, stories: LanguageService) -> None:
    with start(create_app([stories], limits=Limits(waiting=0))) as url, httpx.Client(base_url=url) as client:
        with streaming(client):
            answer = client.post("/v1/completions", json=LONG)
            assert (answer.status_code, answer.headers["Retry-After"]) == (429, "1")
            assert answer.json()["error"]["code"] == "queue_full"
        wait_until_idle(client)
        assert client.post("/v1/completions", json={**LONG, "max_tokens": 2}).status_code == 200


def test_a_client_that_goes_during_a_stream_frees_the_engine(start: Any, stories: LanguageService) -> None:
    with start(create_app([stories])) as url, httpx.Client(base_url=url) as client:
        with streaming(client):
            pass
        wait_until_idle(client)
        assert gauge(client, "vllm:generation_tokens_total") < LONG["max_tokens"]


def test_a_client_that_goes_while_it_waits_frees_the_engine(start: Any, stories: LanguageService) -> None:
    with start(create_app([stories])) as url, httpx.Client(base_url=url) as client:
        with pytest.raises(httpx.ReadTimeout):
            client.post("/v1/completions", json=LONG, timeout=0.5)
        wait_until_idle(client)
        assert gauge(client, "vllm:generation_tokens_total") < LONG["max_tokens"]


def test_an_engine_that_fails_tells_those_who_wait_and_is_not_ready(
    start: Any, stories: LanguageService, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("a secret of the inside")

    with start(create_app([stories])) as url, httpx.Client(base_url=url) as client:
        with streaming(client) as lines:
            monkeypatch.setattr(Engine, "step", fail)
            *_, last = lines
        error = json.loads(last.removeprefix("data: "))["error"]
        assert (error["type"], "secret" in error["message"]) == ("server_error", False)
        assert client.post("/v1/completions", json=LONG).status_code == 503
        assert client.get("/health/ready").status_code == 503
        assert client.get("/health/live").status_code == 200


def test_metrics_count_what_happened(start: Any, stories: LanguageService) -> None:
    with start(create_app([stories])) as url, httpx.Client(base_url=url) as client:
        client.post("/v1/completions", json={**LONG, "max_tokens": 5})
        client.post("/v1/completions", json={**LONG, "prompt": [5] * 40, "n": 2, "max_tokens": 1})
        client.post("/v1/completions", json={})
        client.get("/random/path")
        text = client.get("/metrics").text
    assert 'lissom_requests_total{route="/v1/completions",code="200"} 2' in text
    assert 'lissom_requests_total{route="/v1/completions",code="400"} 1' in text
    assert 'lissom_requests_total{route="other",code="404"} 1' in text
    assert 'vllm:generation_tokens_total{model_name="stories"} 7' in text
    assert 'vllm:time_to_first_token_seconds_count{model_name="stories"} 3' in text
    assert 'vllm:inter_token_latency_seconds_bucket{model_name="stories",le="+Inf"} 4' in text
    assert 'vllm:num_requests_waiting{model_name="stories"} 0' in text
    assert 'vllm:request_success_total{model_name="stories",finished_reason="length"} 3' in text
    assert 'vllm:e2e_request_latency_seconds_count{model_name="stories"} 3' in text
    assert 'vllm:prefix_cache_hits_total{model_name="stories"} 32' in text


def test_with_a_draft_answers_are_the_same_and_guesses_are_counted(start: Any, model: Any, tokenizer: Any) -> None:
    services = [
        LanguageService(model=model, tokenizer=tokenizer, name="plain", speculate="off"),
        LanguageService(model=model, tokenizer=tokenizer, name="drafted", speculate="always", draft=model),
    ]
    asked = {"prompt": "Once upon a time", "max_tokens": 50, "temperature": 0, "ignore_eos": True, "logprobs": 1}
    with start(create_app(services)) as url, httpx.Client(base_url=url, timeout=PATIENCE) as client:
        plain, drafted = (
            client.post("/v1/completions", json={**asked, "model": service.name}).json() for service in services
        )
        text = client.get("/metrics").text
    assert drafted["usage"] == plain["usage"]
    for name in ("text", "finish_reason"):
        assert drafted["choices"][0][name] == plain["choices"][0][name]
    assert drafted["choices"][0]["logprobs"]["tokens"] == plain["choices"][0]["logprobs"]["tokens"]
    counts = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if line[0] != "#"}
    guessed, accepted = (
        counts[f'vllm:spec_decode_num_{name}_tokens_total{{model_name="drafted"}}'] for name in ("draft", "accepted")
    )
    assert guessed >= accepted > 30
    assert counts['vllm:spec_decode_num_draft_tokens_total{model_name="plain"}'] == 0
    assert counts['vllm:generation_tokens_total{model_name="drafted"}'] == 50
    assert counts['vllm:inter_token_latency_seconds_count{model_name="drafted"}'] == 49


def test_a_port_in_use_is_one_clear_line(stories: LanguageService) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(DataError, match=r"cannot listen on 127\.0\.0\.1:.*choose another"):
            serve([stories], port=taken.getsockname()[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"host": "0.0.0.0"}, "can be reached by other machines; give a key"),
        ({"host": "::"}, "can be reached"),
        ({"api_key": ""}, "api_key is empty"),
        ({"grpc_port": 70_000}, "gRPC port 70000 does not exist"),
        ({"host": "no.such.host.invalid", "api_key": "k"}, "cannot listen on no.such.host"),
        ({"port": 70000}, "port 70000 does not exist"),
    ],
)
def test_what_is_unsafe_or_impossible_is_refused(
    stories: LanguageService, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(LissomError, match=message):
        serve([stories], **options)


def test_services_need_different_names(stories: LanguageService) -> None:
    with pytest.raises(DataError, match="different names"):
        create_app([stories, stories])
    with pytest.raises(DataError, match="nothing given"):
        create_app([])


@pytest.mark.parametrize(
    "signature",
    [{"inputs": [], "outputs": []}, {"inputs": [{"name": "x", "datatype": "FLOAT", "shape": [1]}], "outputs": []}],
)
def test_a_signature_that_says_too_little_is_refused(signature: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="serve: "):
        create_app([TensorService(module=abs, name="abs", signature=signature)])


@contextmanager
def process(root: Path, folder: Path, grace: float) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The server in a process of its own, as the command line runs it."""
    environment = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", SCRIPT, str(folder), "0", str(grace)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as running:
        assert running.stdout is not None
        try:
            yield running, running.stdout.readline().strip()
        finally:
            running.kill()


def test_sigterm_lets_what_runs_finish(root: Path, demo_folder: Path) -> None:
    with process(root, demo_folder, grace=PATIENCE) as (running, url), httpx.Client(base_url=url) as client:
        with streaming(client, max_tokens=100) as lines:
            running.send_signal(signal.SIGTERM)
            assert list(lines)[-1] == "data: [DONE]"
        assert running.stdout is not None
        assert running.stdout.read() == "stopped\n"
        assert running.wait(PATIENCE) == 0


def test_sigint_without_grace_ends_streams_with_an_error(root: Path, demo_folder: Path) -> None:
    with process(root, demo_folder, grace=0) as (running, url), httpx.Client(base_url=url) as client:
        with streaming(client) as lines:
            running.send_signal(signal.SIGINT)
            assert json.loads(list(lines)[-1].removeprefix("data: "))["error"]["code"] == "unavailable"
        assert running.wait(PATIENCE) == 0


def test_who_cannot_wait_is_told_in_time(start: Any, stories: LanguageService) -> None:
    """The first token did not come within the client's timeout; what was begun for it is given up."""
    with start(create_app([stories])) as url, httpx.Client(base_url=url, timeout=PATIENCE) as client:
        with streaming(client) as lines:
            answer = client.post("/v1/completions", json={**LONG, "timeout": 0.2})
            assert (answer.status_code, "within the timeout" in answer.json()["error"]["message"]) == (504, True)
            with client.stream("POST", "/v1/completions", json={**LONG, "timeout": 0.2, "stream": True}) as late:
                *_, last = (line for line in late.iter_lines() if line)
            assert "within the timeout" in last
            assert next(lines)
        answer = client.post("/v1/completions", json={**LONG, "max_tokens": 2, "timeout": PATIENCE})
        assert answer.status_code == 200


def test_the_more_urgent_is_answered_first(start: Any, stories: LanguageService) -> None:
    ended = list[int]()
    with start(create_app([stories])) as url, httpx.Client(base_url=url, timeout=PATIENCE) as client:

        def ask(priority: int) -> None:
            answer = httpx.post(
                f"{url}/v1/completions", json={**LONG, "max_tokens": 100, "priority": priority}, timeout=PATIENCE
            )
            assert answer.status_code == 200
            ended.append(priority)

        with streaming(client):  # takes the only place until all wait
            threads = [threading.Thread(target=ask, args=(priority,)) for priority in (3, 1, 2, 0)]
            for thread in threads:
                thread.start()
            for _ in range(PATIENCE * 20):
                if gauge(client, "vllm:num_requests_waiting") == 4:
                    break
                time.sleep(0.05)
        for thread in threads:
            thread.join()
    assert ended == [0, 1, 2, 3]


def test_a_server_imports_nothing_that_only_engines_need() -> None:
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr
