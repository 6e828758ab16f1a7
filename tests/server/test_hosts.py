"""Models of folders, each in a process of its own: what it says, how it ends, and that another takes its place."""

import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

import lissom
from lissom.artifact import annotate
from lissom.artifact.manifest import write_manifest
from lissom.engine.kernels import native
from lissom.errors import ArtifactError, DataError, LissomError, ModelError
from lissom.server import FolderService, Limits, create_app, serve
from lissom.server.hosts import InProcess

PATIENCE = 60  # seconds until a test gives up; no result depends on it
LONG: dict[str, Any] = {"model": "small", "prompt": "Once", "max_tokens": 900, "ignore_eos": True}
TEMPLATE = "{% for turn in messages %}{{ turn.content }}{% endfor %}{% if tools %} with tools{% endif %}"
DROP = {"value": 0.0, "low": -0.01, "high": 0.004, "n": 900}
PASS = {"verdict": "PASS", "drop": DROP, "max_drop": 0.01, "parts": {}}
FAIL = {"verdict": "FAIL", "drop": {**DROP, "high": 0.08}, "max_drop": 0.01, "parts": {}}


@pytest.fixture(scope="module")
def folder(demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compressed language model with a chat template and a certificate."""
    source = tmp_path_factory.mktemp("source") / "model"
    shutil.copytree(demo_folder, source)
    (source / "chat_template.jinja").write_text(TEMPLATE)
    recipe = lissom.Recipe.of([{"technique": "rtn", "bits": 8}])
    out = lissom.compress_checkpoint(source, recipe, torch.empty(0, 8, dtype=torch.long), source.parent / "small")
    annotate(out, certificate=PASS)
    return out


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds no language model."""
    layers = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    return lissom.save(layers.eval(), tmp_path_factory.mktemp("module") / "net", example=torch.randn(2, 3))


@pytest.fixture
def client(start: Any, folder: Path) -> Iterator[httpx.Client]:
    limits = Limits(stall_seconds=2, grace_seconds=5)
    app = create_app([FolderService(folder=folder, name="small", max_batch=2)], limits=limits)
    with start(app) as url, httpx.Client(base_url=url, timeout=PATIENCE) as one:
        yield one


def child() -> int:
    """The process of the only model."""
    found = subprocess.run(
        ["pgrep", "-P", str(os.getpid()), "-f", "lissom.engine.process"], capture_output=True, text=True, check=True
    )
    return int(found.stdout.split()[-1])


def gone(pid: int) -> bool:
    """Whether a process ends while one waits."""
    for _ in range(PATIENCE * 20):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def wait_until_ready(client: httpx.Client) -> None:
    for _ in range(PATIENCE * 20):
        if client.get("/health/ready").status_code == 200:
            return
        time.sleep(0.05)
    pytest.fail("the engine did not come back")


def test_a_folder_answers_as_its_engine_does(client: httpx.Client, folder: Path) -> None:
    from lissom.artifact import open_folder
    from lissom.engine import Engine, Sampling
    from lissom.engine.lower import lower

    opened = open_folder(folder, bare=True)
    engine = Engine(lower(opened.model), opened.tokenizer, max_tokens_in_cache=1024)  # type: ignore[arg-type]
    expected = engine.generate([opened.tokenizer.encode("Once upon a time")], Sampling(temperature=0, max_tokens=20))
    asked = {"model": "small", "prompt": "Once upon a time", "temperature": 0, "max_tokens": 20, "logprobs": 0}
    answer = client.post("/v1/completions", json=asked).json()
    assert answer["choices"][0]["text"] == expected[0].text
    card = client.get("/v1/models/small").json()
    assert card["evidence"]["certificate"] == client.get("/evidence").json()["small"]["certificate"] == PASS
    assert card["max_model_len"] == engine.context


def test_a_compressed_model_knows_its_chat_template(client: httpx.Client) -> None:
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    turns = {"model": "small", "messages": [{"role": "user", "content": "Once upon"}]}
    plain = client.post("/tokenize", json={**turns, "return_token_strs": True}).json()
    assert "".join(plain["token_strs"]).strip() == "Once upon"
    answer = client.post("/v1/chat/completions", json={**turns, "max_tokens": 3})
    assert (answer.status_code, answer.json()["usage"]["prompt_tokens"]) == (200, plain["count"])
    continued = [*turns["messages"], {"role": "assistant", "content": "a time"}]  # type: ignore[misc]
    how = {"add_generation_prompt": False, "continue_final_message": True}
    answer = client.post("/v1/chat/completions", json={"model": "small", "messages": continued, "max_tokens": 3, **how})
    assert answer.status_code == 200
    answer = client.post("/v1/chat/completions", json={**turns, "tools": [tool]})
    assert (answer.status_code, "template knows none" in answer.json()["error"]["message"]) == (400, True)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stuck"])
def test_an_engine_that_ends_or_stands_still_is_replaced(client: httpx.Client, end: signal.Signals) -> None:
    before = child()
    with client.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as answer:
        lines = (line for line in answer.iter_lines() if line)
        next(lines)
        os.kill(before, end)
        *_, last = lines
    assert json.loads(last.removeprefix("data: "))["error"]["type"] == "server_error"
    wait_until_ready(client)
    assert gone(before)
    assert child() != before
    answer = client.post("/v1/completions", json={**LONG, "max_tokens": 3})
    assert (answer.status_code, answer.json()["usage"]["completion_tokens"]) == (200, 3)
    assert 'lissom_engine_restarts_total{model_name="small"} 1' in client.get("/metrics").text


@pytest.mark.skipif(not native.kernels(), reason="the kernels in C were not built: there was no compiler")
def test_who_takes_the_place_of_an_engine_finds_the_model_put_together(folder: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(folder, tmp_path / "copied")
    host = InProcess(FolderService(folder=copied, name="small"))
    try:
        first, greeting = host.open()
        first.close()
        for file in copied.glob("*.safetensors"):
            file.unlink()
        host.kill()
        again, told = host.open()
        again.close()
        assert told == greeting
        host.close()  # now it is forgotten
        with pytest.raises(ArtifactError, match="is missing"):
            host.open()
    finally:
        host.close()


def test_what_the_engine_refuses_is_told_as_the_clients_fault(client: httpx.Client) -> None:
    for wrong in ({"prompt": [5000]}, {"max_tokens": 10**6}, {"structured_outputs": {"regex": "("}}):
        answer = client.post("/v1/completions", json={"model": "small", "prompt": "Once", **wrong})
        assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")
    assert client.post("/v1/completions", json={**LONG, "max_tokens": 2}).status_code == 200


def test_a_process_ends_with_its_server(start: Any, folder: Path) -> None:
    with start(create_app([FolderService(folder=folder, name="small")])):
        pid = child()
    assert gone(pid)


def test_a_process_ends_with_a_server_that_is_killed(root: Path, module: Path) -> None:
    command = [sys.executable, "-m", "lissom.cli", "serve", str(module), "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        assert server.stdout is not None
        assert server.stdout.readline().startswith("net at http://127.0.0.1:")
        found = subprocess.run(["pgrep", "-P", str(server.pid)], capture_output=True, text=True, check=True)
        server.kill()
    assert gone(int(found.stdout))


def test_several_models_are_served_side_by_side(start: Any, folder: Path, module: Path) -> None:
    services = [FolderService(folder=folder, name="small"), FolderService(folder=module, name="net")]
    x = torch.randn(3, 3)
    tensor = {"name": "input", "datatype": "FP32", "shape": [3, 3], "data": x.flatten().tolist()}
    with start(create_app(services)) as url, httpx.Client(base_url=url, timeout=PATIENCE) as client:
        assert client.post("/v1/completions", json={**LONG, "max_tokens": 2}).status_code == 200
        answer = client.post("/v2/models/net/infer", json={"inputs": [tensor]}).json()
        assert client.get("/evidence").json().keys() == {"small", "net"}
    (output,) = answer["outputs"]
    expected = lissom.load(module)(x)
    torch.testing.assert_close(torch.tensor(output["data"]).reshape(output["shape"]), expected)


def test_a_server_speaks_https(root: Path, module: Path, tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl to make a certificate")
    words = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    subprocess.run(
        ["openssl", *words.split(), "-keyout", "key.pem", "-out", "certificate.pem"],
        cwd=tmp_path, check=True, capture_output=True,
    )  # fmt: skip
    pair = tmp_path / "certificate.pem", tmp_path / "key.pem"
    command = [sys.executable, "-m", "lissom.cli", "serve", str(module), "--port", "0"]
    command += ["--tls-certificate", str(pair[0]), "--tls-key", str(pair[1])]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        assert server.stdout is not None
        url = server.stdout.readline().split()[-1]
        assert url.startswith("https://")
        trusted = ssl.create_default_context(cafile=str(pair[0]))
        assert httpx.get(f"{url}/health/ready", verify=trusted).status_code == 200
        server.terminate()
        assert server.wait(PATIENCE) == 0


def test_files_that_are_no_certificate_are_refused_before_anything_is_loaded(module: Path, tmp_path: Path) -> None:
    for wrong in (tmp_path / "nothing.pem", module / "lissom.json"):
        with pytest.raises(DataError, match=r"no certificate and its private key.*PEM"):
            serve([FolderService(folder=module, name="net")], tls=(wrong, wrong))


def altered(folder: Path, to: Path, **content: Any) -> Path:
    """A copy of a folder whose lissom.json says something else."""
    shutil.copytree(folder, to)
    annotate(to, **content)
    return to


@pytest.mark.parametrize(
    ("certificate", "message"),
    [
        (FAIL, "certificate says FAIL: the drop may be 8.00%, and 1.00% is allowed"),
        ({**FAIL, "verdict": "PASS"}, "says PASS, but a drop of 8.00% is more than the 1.00% allowed"),
        ({**PASS, "parts": {"accuracy": PASS, "kl": {**FAIL, "verdict": "NEED MORE"}}}, "of kl says NEED MORE"),
        ({"verdict": "PASS"}, "certificate is damaged"),
    ],
)
def test_a_certificate_that_does_not_hold_is_not_served(
    start: Any, module: Path, tmp_path: Path, certificate: Any, message: str
) -> None:
    wrong = altered(module, tmp_path / "wrong", certificate=certificate)
    with pytest.raises(ArtifactError, match=message):
        create_app([FolderService(folder=wrong, name="net")])
    with start(create_app([FolderService(folder=wrong, name="net", uncertified=True)])) as url:
        assert httpx.get(f"{url}/evidence").json()["net"]["certificate"] == certificate


def test_a_folder_that_cannot_be_served_says_why(module: Path, folder: Path, tmp_path: Path) -> None:
    damaged = altered(module, tmp_path / "damaged")
    next(damaged.glob("*.safetensors")).write_bytes(b"nothing")
    unsigned = altered(module, tmp_path / "unsigned")
    manifest = json.loads((unsigned / "lissom.json").read_text())
    write_manifest(unsigned, "module", {**manifest, "signature": None})
    for given, kind, message in (
        ({"folder": damaged}, ArtifactError, "copy the folder again"),
        ({"folder": tmp_path}, ModelError, "lissom|model"),
        ({"folder": unsigned}, DataError, "save it with example"),
        ({"folder": module, "draft": folder}, DataError, "leave it out"),
        ({"folder": folder, "draft": module}, DataError, "is no language model"),
        ({"folder": folder, "target": "moon"}, LissomError, "'moon' is not on this machine; possible here: cpu"),
    ):
        with pytest.raises(kind, match=message):
            create_app([FolderService(name="one", **given)])  # type: ignore[arg-type]
