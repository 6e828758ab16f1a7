"""What `lissom serve` takes, from where, and what it tells."""

import configparser
import errno
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import typer
from typer.testing import CliRunner

import lissom
from lissom.artifact.tensors import payload
from lissom.cli import app
from lissom.cli.serve import KV_CACHES, SPECULATE, tell
from lissom.engine.cache import AUTO, STORES
from lissom.engine.speculate import NEVER, WHERE_IT_PAYS
from lissom.errors import DataError
from lissom.server.keys import add_key
from lissom.types import Budget


def test_the_choices_are_those_of_the_engine() -> None:
    assert (AUTO, *STORES) == KV_CACHES
    assert SPECULATE == (WHERE_IT_PAYS, NEVER)


def test_options_may_stand_in_a_file_or_in_the_environment(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is given on the command line goes before the environment, and that before the file."""
    served = list[tuple[Any, dict[str, Any]]]()
    monkeypatch.setattr("lissom.server.serve", lambda hosts, **how: served.append((hosts, how)))
    monkeypatch.setattr("lissom.server.InProcess", Unstarted)
    file = tmp_path / "serve.toml"
    told = 'port = 1\ngrpc-port = 2\nkv_cache = "int8"\ntarget = "cuda"\nuncertified = true\n'
    file.write_text(f'models = ["a=one", "b=two"]\n{told}')
    run = CliRunner()
    for words, environment, port in (
        ([], {}, 1),
        ([], {"LISSOM_SERVE_PORT": "3"}, 3),
        (["--port", "4"], {"LISSOM_SERVE_PORT": "3"}, 4),
    ):
        done = run.invoke(app, ["serve", "--config", str(file), *words], env=environment, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        hosts, how = served.pop()
        services = [host.service for host in hosts]
        assert [(one.name, one.folder, one.cache, one.target, one.uncertified) for one in services] == [
            ("a", "one", "int8", "cuda", True),
            ("b", "two", "int8", "cuda", True),
        ]
        assert (how["port"], how["grpc_port"]) == (port, 2)
    words = ["serve", "model", "--shadow", "original", "--share", "20%", "--max-disagreement", "0.03", "--no-rollback"]
    run.invoke(app, words, catch_exceptions=False)
    shadow = served.pop()[0][0].service.shadow
    assert (shadow.service.folder, shadow.share, shadow.rollback) == ("original", 0.2, False)
    assert shadow.budget == Budget(max_drop=0.03, confidence=0.99)
    for words in (["--share", "5%"], ["--no-rollback"]):
        with pytest.raises(DataError, match=rf"--{words[0].removeprefix('--no-').removeprefix('--')} is of a shadow"):
            run.invoke(app, ["serve", "model", *words], catch_exceptions=False)
    for content, message in (("prot = 1", "no option 'prot'; possible are"), ("port", "is no TOML")):
        file.write_text(content)
        with pytest.raises(DataError, match=message):
            run.invoke(app, ["serve", "--config", str(file), "model"], catch_exceptions=False)


def test_a_server_goes_on_where_nobody_can_be_told_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    told = list[str]()

    class Full:
        """Standard output on a full disk."""

        def write(self, text: str) -> None:
            told.append(text)
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sys, "stdout", Full())
    tell("it is here")
    assert told == ["it is here"]


class Unstarted:
    """In the place of a process."""

    def __init__(self, service: Any) -> None:
        self.service = service

    def close(self) -> None:
        """Nothing was opened."""


def test_the_files_for_operators_name_options_that_there_are(root: Path) -> None:
    """What no test can start here is read: the unit and the image call what there is."""
    service = root / "examples" / "service"
    possible = {
        option.removeprefix("--")
        for one in typer.main.get_command(app).commands["serve"].params  # type: ignore[attr-defined]
        for option in (*one.opts, *one.secondary_opts)
    }
    configured = tomllib.loads((service / "serve.toml").read_text())
    assert configured.keys() <= possible
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(service / "lissom.service")
    words = unit["Service"]["ExecStart"].split()
    image = (service / "Dockerfile").read_text()
    assert words[:2] == ["/opt/lissom/bin/lissom", "serve"]
    assert '["/opt/lissom/bin/lissom", "serve"]' in image
    named = re.findall(
        r"--([a-z-]+)", f"{unit['Service']['ExecStart']} {image.split('FROM')[0].partition('lissom ')[2]}"
    )
    assert {"config", "host", "keys"} <= set(named)
    assert Path(configured["admin"]).parent == Path("/run") / unit["Service"]["RuntimeDirectory"]


def test_every_request_is_a_line_of_json(root: Path, tmp_path: Path) -> None:
    """With its name, its key and what came of it; and with nothing of what was asked or of the key itself."""
    layers = torch.nn.Sequential(torch.nn.Linear(3, 2)).eval()
    folder = lissom.save(layers, tmp_path / "net", example=torch.randn(2, 3))
    key = add_key(tmp_path / "keys.json", "alice")
    command = [sys.executable, "-m", "lissom.cli", "serve", str(folder), "--port", "0", "--log", "json"]
    command += ["--keys", str(tmp_path / "keys.json")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root) as server:
        assert server.stdout is not None
        url = server.stdout.readline().split()[-1]
        tensor = {"name": "input", "datatype": "FP32", "shape": [1, 3], "data": [1.25, 2.5, 5.125]}
        headers = {"Authorization": f"Bearer {key}", "X-Request-Id": "mine"}
        httpx.post(f"{url}/v2/models/net/infer", json={"inputs": [tensor]}, headers=headers)
        httpx.get(f"{url}/v2/models/none", headers={"Authorization": "Bearer wrong-key"})
        server.terminate()
        written = server.stderr.read() if server.stderr else ""
        assert server.wait(60) == 0
    lines = [json.loads(line) for line in written.splitlines()]
    asked, refused = [line for line in lines if line["message"] == "request"]
    assert (asked["request"], asked["key"], asked["status"]) == ("mine", "alice", 200)
    assert asked["route"] == "/v2/models/{name}/infer"
    assert refused["status"] == 401
    for secret in (key, "5.125", "wrong-key"):
        assert secret not in written


def test_a_dry_run_says_what_it_would_take(demo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside what an engine then has: the bytes of its weights and of its cache."""
    from lissom.artifact import open_folder
    from lissom.cli.foresee import foreseen
    from lissom.engine import Engine, Sampling
    from lissom.engine.lower import lower
    from lissom.hardware import limits
    from lissom.server import FolderService

    recipe = lissom.Recipe.of([{"technique": "rtn", "bits": 8}])
    small = lissom.compress_checkpoint(demo_folder, recipe, torch.empty(0, 8, dtype=torch.long), tmp_path / "small")
    opened = open_folder(small, bare=True)
    engine = Engine(lower(opened.model), opened.tokenizer, max_tokens_in_cache=1024, cache="int8")  # type: ignore[arg-type]
    engine.generate([[5, 6]], Sampling(max_tokens=1))
    service = FolderService(folder=small, name="small", cache="int8", max_tokens_in_cache=1024)
    roughly = limits(0.01, size=64, read_bytes=2**20)
    found = foreseen(service, roughly)
    assert found["weights"] == sum(payload(file) for file in small.glob("*.safetensors"))
    assert found["cache"] == pytest.approx(1024 * engine.token_bytes, rel=0.05)  # the scales
    assert found["written"] > 0 < found["read"]
    layers = lissom.save(torch.nn.Sequential(torch.nn.Linear(3, 2)), tmp_path / "net", example=torch.randn(2, 3))
    monkeypatch.setattr("lissom.hardware.limits", lambda seconds: roughly)
    run = CliRunner()
    done = run.invoke(app, ["serve", str(small), str(layers), "--dry-run"], catch_exceptions=False)
    assert done.exit_code == 0
    assert re.search(r"in all; .* are free: it fits", done.output)
    monkeypatch.setattr("lissom.hardware.available_bytes", lambda: 1000)
    done = run.invoke(app, ["serve", str(layers), "--dry-run"], catch_exceptions=False)
    assert (done.exit_code, "does not fit" in done.output) == (1, True)
