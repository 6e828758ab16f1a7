"""Keys: who comes in, how much he may ask for, and that a file of them gives none of them away."""

import json
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import HTTPException

from lissom.errors import DataError
from lissom.server import LanguageService, create_app
from lissom.server.keys import Bucket, Caller, Keys, add_key, read_keys, remove_key, write_keys

PATIENCE = 60
ASK = {"model": "stories", "prompt": "Once upon a time", "max_tokens": 4, "ignore_eos": True}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_bucket_fills_as_time_passes() -> None:
    clock = Clock()
    bucket = Bucket(per_minute=60, clock=clock)
    assert bucket.wait(60) == 0
    bucket.take(60)
    assert bucket.wait(1) == pytest.approx(1)
    clock.now = 10
    assert bucket.wait(10) == 0
    assert bucket.wait(20) == pytest.approx(10)
    bucket.take(100)  # more than there is, which has to be waited for
    assert bucket.wait(0) == pytest.approx(90)
    clock.now = 10_000
    assert bucket.wait(600) == 0  # more than it can ever hold


def test_a_caller_may_ask_so_often_and_for_so_much() -> None:
    clock = Clock()
    caller = Caller(requests=Bucket(per_minute=2, clock=clock), tokens=Bucket(per_minute=100, clock=clock))
    caller.knock()
    caller.knock()
    with pytest.raises(HTTPException, match="2 requests a minute; try again in 30 seconds") as refused:
        caller.knock()
    assert (refused.value.status_code, refused.value.headers) == (429, {"Retry-After": "30"})
    clock.now = 60
    caller.spend(150)
    with pytest.raises(HTTPException, match="100 tokens a minute; try again in 31 seconds"):
        caller.knock()
    clock.now = 91
    caller.knock()


def test_a_file_of_keys_holds_none_of_them(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    secret = add_key(file, "alice", requests_per_minute=3.0)
    add_key(file, "bob")
    assert secret.removeprefix("lissom-") not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [key.name for key in read_keys(file)] == ["alice", "bob"]
    keys = Keys(None, file)
    assert (found := keys.caller(secret.encode())) is not None
    assert (found.name, found.requests and found.requests.per_minute) == ("alice", 3)
    assert keys.caller(b"lissom-") is None
    with pytest.raises(DataError, match="has a key 'bob'; remove it first"):
        add_key(file, "bob")
    with pytest.raises(DataError, match=r"tokens_per_minute: .* greater than 0"):
        add_key(file, "carol", tokens_per_minute=0.0)
    with pytest.raises(DataError, match="no key 'carol'; possible are alice, bob"):
        remove_key(file, "carol")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no keys"),
        ("[]", "holds no keys"),
        ('{"keys": [{"name": "a"}]}', "sha256: Field required"),
        ('{"keys": [{"name": "a", "sha256": "short"}]}', "sha256: String should match"),
        (json.dumps({"keys": [{"name": "a", "sha256": "0" * 64}] * 2}), "two keys have the same name"),
    ],
)
def test_a_file_that_holds_something_else_is_refused(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "keys.json"
    file.write_text(content)
    with pytest.raises(DataError, match=message):
        Keys(None, file)
    with pytest.raises(DataError, match="holds no keys"):
        Keys(None, tmp_path / "missing.json")


def test_a_changed_file_counts_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that is taken out opens nothing; what others have used still counts; a damaged file changes nothing."""
    monkeypatch.setattr("lissom.server.keys.LOOK", 0.0)
    file = tmp_path / "keys.json"
    alice, bob = (add_key(file, name, requests_per_minute=1.0).encode() for name in ("alice", "bob"))
    keys = Keys("single", file)
    first = keys.caller(alice)
    assert first is not None
    first.knock()
    remove_key(file, "bob")
    assert keys.caller(bob) is None
    assert keys.caller(alice) is first
    file.write_text("damaged")
    assert keys.caller(alice) is first
    write_keys(file, [])
    assert keys.caller(alice) is None
    file.unlink()
    assert keys.caller(b"single") is not None


def test_keys_open_the_server_and_bound_what_is_asked(start: Any, model: Any, tokenizer: Any, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    alice, bob = add_key(file, "alice", requests_per_minute=2.0), add_key(file, "bob", tokens_per_minute=8.0)
    service = LanguageService(model=model, tokenizer=tokenizer, name="stories")
    with start(create_app([service], keys=file)) as url, httpx.Client(base_url=url, timeout=PATIENCE) as client:

        def ask(key: str) -> httpx.Response:
            return client.post("/v1/completions", json=ASK, headers={"Authorization": f"Bearer {key}"})

        assert [ask(alice).status_code for _ in range(3)] == [200, 200, 429]
        assert ask("nobody").status_code == 401
        answer = ask(bob)
        used = answer.json()["usage"]["total_tokens"]
        assert used == 8
        answer = ask(bob)
        assert (answer.status_code, "8 tokens a minute" in answer.json()["error"]["message"]) == (429, True)
        assert int(answer.headers["retry-after"]) == pytest.approx(60 / 8, abs=2)
        assert client.get("/health/live").status_code == 200


def test_keys_are_made_on_the_command_line(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "lissom.cli", "keys", str(file), *words]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)

    secret = run("--add", "alice", "--requests-per-minute", "5", "--priority", "1").stdout.strip()
    assert Keys(None, file).caller(secret.encode()) is not None
    assert run().stdout.splitlines()[1].split() == ["alice", "5", "any", "1"]
    assert run("--remove", "alice").returncode == 0
    assert Keys(None, file).caller(secret.encode()) is None
    for words, message in ((["--priority", "2"], "give --add NAME"), (["--add", "a", "--remove", "b"], "one of them")):
        failed = run(*words)
        assert (failed.returncode, message in failed.stderr) == (2, True)
