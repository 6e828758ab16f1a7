"""Attacks that were made on servers of this kind, by class, with where they were found; none of them works here."""

import copy
import json
import os
import re
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from lissom.artifact import open_folder
from lissom.errors import LissomError
from lissom.server import FolderService, LanguageService, create_app

PATIENCE = 60  # seconds until a test gives up; no result depends on it
ASK: dict[str, Any] = {"model": "stories", "prompt": "Once upon a time", "max_tokens": 4, "temperature": 0}
CHAT: dict[str, Any] = {"model": "stories", "messages": [{"role": "user", "content": "Once"}], "max_tokens": 2}


def lives(client: httpx.Client) -> None:
    """It answers as before."""
    answer = client.post("/v1/completions", json=ASK)
    assert answer.status_code == 200, answer.text


def refused(answer: httpx.Response, *, said: str = "") -> None:
    """The client's fault, told by name, and nothing of our inside."""
    assert answer.status_code in (400, 404, 405, 415, 422), answer.text
    assert said in answer.text
    assert "Traceback" not in answer.text
    assert "site-packages" not in answer.text


def test_unsafe_deserialization(root: Path, http: httpx.Client) -> None:
    """ShadowMQ (CVE-2024-50050, CVE-2026-3059), BentoML CVE-2025-27520, torch.load CVE-2025-32434: nothing is read that
    could be code, whatever it is called."""
    words = ("import (?:pickle|marshal|shelve)", r"pickle\.(?:load|dump)", r"torch\.load\(", "allow_pickle=True")
    unsafe = re.compile("|".join([*words, r"yaml\.load\(", "recv_pyobj"]))
    for file in (root / "lissom").rglob("*.py"):
        assert not unsafe.search(file.read_text()), file
    bomb = b"cos\nsystem\n(S'touch pwned'\ntR."
    for kind in ("application/vnd.bentoml+pickle", "application/x-pickle", "application/octet-stream"):
        for path in ("/v1/completions", "/v2/models/scale/infer"):
            refused(http.post(path, content=bomb, headers={"Content-Type": kind}))


def test_embeddings_from_clients(http: httpx.Client) -> None:
    """vLLM CVE-2025-62164: tensors in prompts, read by torch.load."""
    refused(http.post("/v1/completions", json={**ASK, "prompt_embeds": "gASV"}), said="prompt_embeds")


@pytest.mark.parametrize("where", ["config.json", "tokenizer_config.json"])
def test_code_that_comes_with_a_model(demo_folder: Path, tmp_path: Path, where: str) -> None:
    """vLLM CVE-2026-22807, transformers CVE-2026-4372: code named by auto_map was run without leave."""
    folder, mark = tmp_path / "model", tmp_path / "mark"
    folder.mkdir()
    for file in demo_folder.iterdir():
        if file.is_file():
            (folder / file.name).write_bytes(file.read_bytes())
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w').close()\nclass Evil:\n    pass\n")
    named = {
        "AutoConfig": "evil.Evil",
        "AutoModelForCausalLM": "evil.Evil",
        "AutoTokenizer": ["evil.Evil", "evil.Evil"],
    }
    content = json.loads((folder / where).read_text())
    for more in ({}, {"model_type": "unheard-of", "tokenizer_class": "Evil"}):
        (folder / where).write_text(json.dumps({**content, **more, "auto_map": named}))
        with suppress(LissomError):  # it may refuse, but must not run it
            open_folder(folder, bare=True)
        assert not mark.exists()


TEMPLATES = {
    "CVE-2024-34359": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "CVE-2026-5760": "{% for c in ().__class__.__base__.__subclasses__() %}{{ c }}{% endfor %}",
    "globals": "{{ raise_exception.__globals__['os'].system('touch MARK') }}",
    "cycler": "{{ cycler.__init__.__globals__.os.popen('touch MARK').read() }}",
    "without end": "{% for a in range(99999) %}{% for b in range(99999) %}{{ '' }}{% endfor %}{% endfor %}",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_that_come_with_a_model(start: Any, model: Any, tokenizer: Any, tmp_path: Path, name: str) -> None:
    """llama-cpp-python CVE-2024-34359, SGLang CVE-2026-5760: a sandbox, and a limit of time."""
    mark, taught = tmp_path / "mark", copy.deepcopy(tokenizer)
    taught.chat_template = TEMPLATES[name].replace("MARK", str(mark))
    service = LanguageService(model=model, tokenizer=taught, name="stories")
    with start(create_app([service])) as url, httpx.Client(base_url=url, timeout=PATIENCE) as client:
        refused(client.post("/v1/chat/completions", json=CHAT), said="chat template of the model refuses them")
        assert not mark.exists()
        lives(client)


def test_templates_from_clients(talking: httpx.Client) -> None:
    """They are for the owner of a model to write."""
    refused(talking.post("/v1/chat/completions", json={**CHAT, "chat_template": "{{ 1 }}"}), said="chat_template")


@pytest.fixture
def bait() -> Iterator[tuple[str, list[Any]]]:
    """An address that nobody should come to, and who did."""
    came = list[Any]()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def wait() -> None:
            try:
                came.append(listener.accept())
            except OSError:
                return

        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/a.png", came
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_addresses_that_a_server_should_fetch(talking: httpx.Client, bait: tuple[str, list[Any]]) -> None:
    """vLLM CVE-2025-6242, CVE-2026-24779, LMDeploy #4761: nothing is fetched, neither images nor schemas nor models."""
    url, came = bait
    for part in (
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "input_audio", "input_audio": {"data": url}},
        {"type": "file", "file": {"file_id": url}},
    ):
        refused(talking.post("/v1/chat/completions", json={**CHAT, "messages": [{"role": "user", "content": [part]}]}))
    schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"$ref": url}}}
    talking.post("/v1/chat/completions", json={**CHAT, "response_format": schema})
    refused(talking.post("/v1/chat/completions", json={**CHAT, "model": url}))
    time.sleep(0.2)
    assert not came


@pytest.mark.parametrize(
    "wrong",
    [
        {"n": 10**9},
        {"n": -1},
        {"best_of": 10**6},
        {"max_tokens": -1},
        {"max_tokens": 2**70},
        {"min_tokens": 10**9},
        {"logprobs": 10**9},
        {"prompt_logprobs": 10**9},
        {"top_k": -2},
        {"stop": ["x"] * 10_000},
        {"stop": ["x" * 100_000]},
        {"stop_token_ids": [-1]},
        {"logit_bias": {str(token): 1 for token in range(5000)}},
        {"logit_bias": {"-1": 1}},
        {"seed": 2**200},
        {"temperature": float("1e308")},
        {"prompt": [-1]},
        {"prompt": [2**63]},
        {"prompt": ["x"] * 10_000},
        {"n_discard": -1},
        {"structured_outputs": {"regex": "("}},
        {"structured_outputs": {"regex": "(" * 10_000}},
        {"structured_outputs": {"json": {"type": "nothing"}}},
        {"priority": -1},
        {"timeout": -1},
    ],
    ids=str,
)
def test_parameters_beyond_measure(http: httpx.Client, wrong: dict[str, Any]) -> None:
    """vLLM CVE-2026-34756 (n), CVE-2025-48944 (regex), llama.cpp CVE-2026-21869 (n_discard)."""
    refused(http.post("/v1/completions", json={**ASK, **wrong}, timeout=PATIENCE))
    lives(http)


@pytest.mark.parametrize(
    "form",
    [{"grammar": "start: start start"}, {"regex": "((a{1,1000}){1,1000}){1,1000}"}, {"regex": "(.*a){200}"}],
    ids=str,
)
def test_forms_that_cost_much(http: httpx.Client, form: dict[str, Any]) -> None:
    """CVE-2025-48944 again: what it takes to read a form is bounded, whatever it says."""
    answer = http.post("/v1/completions", json={**ASK, "structured_outputs": form}, timeout=PATIENCE)
    assert answer.status_code in (200, 400), answer.text
    lives(http)


def test_documents_that_are_deep_or_malformed(http: httpx.Client) -> None:
    """Parsers are where memory errors are: lone surrogates, NUL, bytes that are no text, brackets without end."""
    deep = b'{"model": "stories", "prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    for body in (deep, b"\xff\xfe\x00", b"{", b"null", b'{"model": NaN}', b'{"a":' * 50_000):
        refused(http.post("/v1/completions", content=body, headers={"Content-Type": "application/json"}))
    for text in ("\\ud800", "\\u0000", "\\uffff", "\\ud83d\\ude00" * 100):
        body = f'{{"model": "stories", "prompt": "{text}", "max_tokens": 1}}'
        answer = http.post("/v1/completions", content=body.encode(), headers={"Content-Type": "application/json"})
        assert answer.status_code in (200, 400), answer.text
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(500):
        schema = {"type": "array", "items": schema}
    answer = http.post("/v1/completions", json={**ASK, "structured_outputs": {"json": schema}}, timeout=PATIENCE)
    assert answer.status_code in (200, 400)
    lives(http)


def test_forms_in_many_parts(http: httpx.Client) -> None:
    """BentoML CVE-2024-9056: no form is read at all."""
    refused(http.post("/v1/completions", files={"file": ("a", b"x" * 1000)}))
    boundary = {"Content-Type": "multipart/form-data; boundary=" + "-" * 10_000}
    refused(http.post("/v1/completions", content=b"-" * 100_000, headers=boundary))
    lives(http)


def test_an_admin_plane_within_reach(http: httpx.Client) -> None:
    """TorchServe CVE-2023-43654, Ray CVE-2023-48022: over the network nothing can be loaded or let go of."""
    before = {one["id"] for one in http.get("/v1/models").json()["data"]}
    for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
        for path in ("/models", "/models/stories", "/v2/repository/models/stories/load", "/v1/load_lora_adapter"):
            refused(http.request(method, path, json={"name": "stories", "folder": "/tmp"}))
        refused(http.request(method, "/v1/models/stories", json={}) if method != "GET" else http.get("/shutdown"))
    assert {one["id"] for one in http.get("/v1/models").json()["data"]} == before


def test_ports_between_processes(start: Any, demo_folder: Path) -> None:
    """vLLM's and llama.cpp's workers listen to a network: here a process has one end of a socket pair, and no port."""
    listening = Path("/proc/net/tcp")
    if not listening.exists():
        pytest.skip("needs /proc/net/tcp")
    with start(create_app([FolderService(folder=demo_folder, name="stories")])):
        found = subprocess.run(
            ["pgrep", "-P", str(os.getpid()), "-f", "lissom.engine.process"], capture_output=True, text=True, check=True
        )
        child = found.stdout.split()[-1]
        names = [os.readlink(file) for file in Path(f"/proc/{child}/fd").iterdir() if file.is_symlink()]
        own = {name.removeprefix("socket:[").removesuffix("]") for name in names if name.startswith("socket:")}
        assert own
        for table in ("tcp", "tcp6", "udp", "udp6"):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                assert line.split()[9] not in own


def test_pages_of_strangers_in_the_browser_of_the_owner(http: httpx.Client) -> None:
    """Ollama CVE-2024-28224 (DNS rebinding), and forms sent to a server of this machine: both need no key here."""
    for host in ("evil.example", "evil.example:8000", "127.0.0.1.evil.example"):
        answer = http.post("/v1/completions", json=ASK, headers={"Host": host})
        assert (answer.status_code, "localhost" in answer.text) == (403, True)
    for host in ("localhost", "localhost:8000", "127.0.0.1", "[::1]:8000"):
        assert http.get("/v1/models", headers={"Host": host}).status_code == 200
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        body = json.dumps(ASK).encode()
        refused(http.post("/v1/completions", content=body, headers={"Content-Type": kind}))
    answer = http.options(
        "/v1/completions", headers={"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    )
    assert not [name for name in answer.headers if name.lower().startswith("access-control")]


def test_lines_smuggled_into_logs_and_headers(http: httpx.Client) -> None:
    """What a client names its request is shown again: only where it can be nothing but a name."""
    for name in ("a\tb", "a; b", "<b>", "a" * 5000):
        assert http.get("/health/live", headers={"X-Request-Id": name}).headers["X-Request-Id"] != name


def test_failures_that_tell_of_the_inside(start: Any, model: Any, tokenizer: Any, monkeypatch: Any) -> None:
    """vLLM CVE-2026-22778: an error's text gave an address away."""
    monkeypatch.setattr("lissom.server.language.Language.encode", lambda *_, **__: 1 / 0)
    service = LanguageService(model=model, tokenizer=tokenizer, name="stories")
    with start(create_app([service])) as url:
        answer = httpx.post(f"{url}/v1/completions", json=ASK, timeout=PATIENCE)
    assert answer.status_code == 500
    assert "division" not in answer.text
