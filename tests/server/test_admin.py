"""Models loaded, exchanged and let go of while a server runs, by its owner alone."""

import asyncio
import json
import os
import socket
import stat
import threading
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

import lissom
from lissom.errors import DataError
from lissom.server import FolderService, LanguageService, Shadow, TensorService, create_app, serve
from lissom.server.admin import LoadRequest, service_of
from lissom.types import Budget

PATIENCE = 60  # seconds until a test gives up; no result depends on it
LONG: dict[str, Any] = {"model": "stories", "prompt": "Once", "max_tokens": 400, "ignore_eos": True, "stream": True}
X = {"name": "input", "datatype": "FP32", "shape": [1, 3], "data": [1.0, 2.0, 3.0]}


def linear(folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    return lissom.save(torch.nn.Linear(3, 2).eval(), folder, example=torch.randn(2, 3))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "admin.sock"


@pytest.fixture
def both(start: Any, model: Any, tokenizer: Any, path: Path) -> Iterator[tuple[httpx.Client, httpx.Client]]:
    """A client of the server and one of its owner's socket; the server begins with a language model."""
    service = LanguageService(model=model, tokenizer=tokenizer, name="stories")
    with (
        start(create_app([service], admin=path)) as url,
        httpx.Client(base_url=url, timeout=PATIENCE) as client,
        httpx.Client(base_url="http://admin", transport=httpx.HTTPTransport(uds=str(path)), timeout=PATIENCE) as owner,
    ):
        yield client, owner


def infer(client: httpx.Client) -> httpx.Response:
    return client.post("/v2/models/net/infer", json={"inputs": [X]})


def test_a_model_is_loaded_and_let_go_of(both: tuple[httpx.Client, httpx.Client], tmp_path: Path) -> None:
    client, owner = both
    folder = linear(tmp_path / "net", 1)
    assert infer(client).status_code == 404
    assert owner.post("/models", json={"name": "net", "folder": str(folder)}).json() == {"name": "net", "loaded": True}
    expected = lissom.load(folder)(torch.tensor([X["data"]]))
    assert infer(client).json()["outputs"][0]["data"] == pytest.approx(expected.flatten().tolist(), abs=1e-5)
    assert owner.get("/models").json()["models"].keys() == {"stories", "net"}
    assert owner.delete("/models/net").json() == {"name": "net", "unloaded": True}
    assert infer(client).status_code == owner.delete("/models/net").status_code == 404


def engines() -> int:
    """How many models of that name are at work in threads; other tests may have some."""
    return [thread.name for thread in threading.enumerate()].count("engine of stories")


def test_who_is_being_answered_is_answered_to_the_end(
    both: tuple[httpx.Client, httpx.Client], demo_folder: Path
) -> None:
    client, owner = both
    before = engines()
    with client.stream("POST", "/v1/completions", json=LONG) as answer:
        lines = (line for line in answer.iter_lines() if line)
        next(lines)
        loaded = owner.post("/models", json={"name": "stories", "folder": str(demo_folder), "max_batch": 2})
        assert loaded.status_code == 200
        *texts, last = lines
    assert last == "data: [DONE]"
    assert json.loads(texts[-1].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
    again = client.post("/v1/completions", json={**LONG, "max_tokens": 3, "stream": False})
    assert (again.status_code, again.json()["usage"]["completion_tokens"]) == (200, 3)
    for _ in range(PATIENCE * 20):  # until the thread of the old one has ended
        if engines() == before - 1:
            return
        time.sleep(0.05)
    pytest.fail("the old model was not let go of")


def test_exchanges_under_load_drop_nothing(both: tuple[httpx.Client, httpx.Client], tmp_path: Path) -> None:
    client, owner = both
    folders = [linear(tmp_path / f"net{seed}", seed) for seed in range(2)]
    expected = [lissom.load(folder)(torch.tensor([X["data"]])).flatten().tolist() for folder in folders]
    owner.post("/models", json={"name": "net", "folder": str(folders[0])})
    answers, over = list[httpx.Response](), threading.Event()

    def ask() -> None:
        while not over.is_set():
            answers.append(infer(client))

    askers = [threading.Thread(target=ask) for _ in range(4)]
    for asker in askers:
        asker.start()
    for turn in (1, 0, 1):
        assert owner.post("/models", json={"name": "net", "folder": str(folders[turn])}).status_code == 200
    over.set()
    for asker in askers:
        asker.join()
    assert {answer.status_code for answer in answers} == {200}
    given = [answer.json()["outputs"][0]["data"] for answer in answers]
    seen = [min(range(2), key=lambda k: abs(expected[k][0] - one[0])) for one in given]
    assert set(seen) == {0, 1}
    for one, k in zip(given, seen, strict=True):
        assert one == pytest.approx(expected[k], abs=1e-5)


class Broken(torch.nn.Module):
    """A module that takes nothing."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise ValueError("no")


def test_what_cannot_be_served_leaves_all_as_it_was(both: tuple[httpx.Client, httpx.Client], tmp_path: Path) -> None:
    client, owner = both
    answer = owner.post("/models", json={"name": "stories", "folder": str(tmp_path)})
    assert (answer.status_code, str(tmp_path) in answer.json()["error"]["message"]) == (400, True)
    assert owner.post("/models", json={"name": "stories"}).status_code == 400
    assert client.post("/v1/completions", json={**LONG, "stream": False, "max_tokens": 2}).status_code == 200


def test_a_model_is_loaded_as_it_would_be_at_the_start(tmp_path: Path) -> None:
    asked: dict[str, Any] = {"name": "net", "folder": "f", "max_batch": 3, "cache": "int8", "target": "cuda"}
    more: dict[str, Any] = {"speculate": "off", "max_tokens_in_cache": 64, "max_delay_ms": 2.0, "uncertified": True}
    assert service_of(LoadRequest(**asked, **more)) == FolderService(**asked, **more)
    assert {field.name for field in fields(FolderService)} <= LoadRequest.model_fields.keys()
    found = service_of(LoadRequest(**asked, shadow="g", share=0.5, max_disagreement=0.2, rollback=False)).shadow
    other = FolderService(name="net", folder="g", target="cuda")
    budget = Budget(max_drop=0.2, confidence=0.99)
    assert found == Shadow(service=other, share=0.5, budget=budget, rollback=False)
    assert service_of(LoadRequest(**asked, shadow="g")).shadow == Shadow(service=other)


def test_a_shadow_is_loaded_with_its_model(both: tuple[httpx.Client, httpx.Client], tmp_path: Path) -> None:
    client, owner = both
    asked = {"name": "net", "folder": str(linear(tmp_path / "one", 1)), "target": "cpu"}
    assert owner.post("/models", json={**asked, "shadow": str(linear(tmp_path / "two", 2)), "share": 1}).is_success
    assert client.get("/evidence").json()["net"]["shadow"]["compared"] == 0
    assert infer(client).status_code == 200


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"target": "gpu"}, "target: 'gpu' is not on this machine; possible here: cpu"),
        ({"max_batch": 0}, "max_batch: "),
        ({"share": 0.5}, "share is of a shadow; give that as shadow, its folder, or leave share out"),
        ({"targets": "cpu"}, "unknown field 'targets'"),
    ],
)
def test_options_that_cannot_be_are_refused_by_name(
    both: tuple[httpx.Client, httpx.Client], tmp_path: Path, wrong: dict[str, Any], told: str
) -> None:
    owner, folder = both[1], linear(tmp_path / "net", 1)
    answer = owner.post("/models", json={"name": "other", "folder": str(folder), **wrong})
    assert answer.status_code == 400
    assert told in answer.json()["error"]["message"]
    assert owner.get("/models").json()["models"].keys() == {"stories"}


def test_a_model_that_does_not_answer_is_not_taken(model: Any, tokenizer: Any) -> None:
    app = create_app([LanguageService(model=model, tokenizer=tokenizer, name="stories")])
    signature = {side: [{"name": side[0], "datatype": "FP32", "shape": [-1, 2]}] for side in ("inputs", "outputs")}

    async def tried() -> None:
        await app.models.start()
        with pytest.raises(DataError, match="stories does not answer"):
            await app.models.load(TensorService(module=Broken(), name="stories", signature=signature))
        assert list(app.models.languages) == ["stories"]
        await app.models.stop()

    asyncio.run(tried())


def test_nobody_else_gets_there(both: tuple[httpx.Client, httpx.Client], path: Path) -> None:
    client, _ = both
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for route in ("/models", "/admin/models"):
        assert client.get(route).status_code == client.post(route, json={}).status_code == 404
    assert client.get("/models", headers={"Host": "admin"}).status_code == 403


def test_a_socket_that_was_left_behind_makes_way_and_no_other_file_does(
    start: Any, model: Any, tokenizer: Any, path: Path
) -> None:
    from lissom.server.admin import bound

    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    with start(create_app([LanguageService(model=model, tokenizer=tokenizer, name="stories")], admin=path)) as url:
        assert httpx.get(f"{url}/health/live").status_code == 200  # it listens by now
        with pytest.raises(DataError, match=r"another server listens on .*admin\.sock"), bound(path):
            pass
    assert not path.exists()
    path.write_text("precious")
    with pytest.raises(DataError, match="cannot be a socket"), bound(path):
        pass
    with pytest.raises(DataError, match="cannot be a socket"):
        serve([LanguageService(model=model, tokenizer=tokenizer, name="stories")], admin=path)
    assert path.read_text() == "precious"
    with pytest.raises(DataError, match="cannot be a socket"), bound(path.parent / "no" / "such"):
        pass
    os.remove(path)


def test_the_end_of_the_server_does_not_bring_back_what_is_being_let_go_of(
    model: Any, tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    service = LanguageService(model=model, tokenizer=tokenizer, name="stories")
    app = create_app([service])

    async def ended() -> None:
        await app.models.start()
        await app.models.load(service)
        await asyncio.sleep(0)  # the old one begins to stop
        app.drain()
        await app.models.stop()

    asyncio.run(ended())
    assert not caplog.records
