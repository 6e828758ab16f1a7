"""A shadow: what it is shown, how far it disagrees, and that it takes over where that is too far."""

import copy
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

import lissom
from lissom.errors import DataError
from lissom.server import FolderService, LanguageService, Shadow, TensorService, create_app
from lissom.server.modules import apart
from lissom.types import Budget

PATIENCE = 60  # seconds until a test gives up; no result depends on it
BUDGET = Budget(max_drop=0.1, confidence=0.99)
SIGNATURE = {
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 2]}],
}
INFER = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [2, 2], "data": [1.0, 2.0, 4.0, 3.0]}]}
ASK = {"model": "stories", "prompt": "Once upon a time", "temperature": 0, "max_tokens": 8}


@pytest.fixture(scope="module")
def noisy(model: Any) -> Any:
    """The same model with other weights, which says other things."""
    torch.manual_seed(0)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for weight in other.parameters():
            weight.add_(0.5 * weight.std() * torch.randn_like(weight))
    return other


def shadowed(model: Any, other: Any, tokenizer: Any, **how: Any) -> LanguageService:
    beside = LanguageService(model=other, tokenizer=tokenizer, name="stories")
    shadow = Shadow(service=beside, **{"share": 1.0, "budget": BUDGET, **how})
    return LanguageService(model=model, tokenizer=tokenizer, name="stories", shadow=shadow)


def seen(client: httpx.Client, until: Callable[[Any], bool], ask: Callable[[], Any] = lambda: None) -> Any:
    """What the witness of the only model tells, as soon as that holds; asked meanwhile."""
    for _ in range(PATIENCE * 20):
        (told,) = client.get("/evidence").json().values()
        if until(told["shadow"]):
            return told["shadow"]
        ask()
        time.sleep(0.05)
    pytest.fail(f"it did not come to that: {told}")


def text(client: httpx.Client, **more: Any) -> str:
    answer = client.post("/v1/completions", json={**ASK, **more})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["text"])


def test_a_model_agrees_with_itself(start: Any, model: Any, tokenizer: Any) -> None:
    with start(create_app([shadowed(model, model, tokenizer)])) as url, httpx.Client(base_url=url) as client:
        for stream in (False, True):
            client.post("/v1/completions", json={**ASK, "stream": stream, "n": 2, "temperature": 1}, timeout=PATIENCE)
        told = seen(client, lambda shadow: shadow["compared"] == 2)
        assert (told["disagreement"]["value"], told["alarm"], told["skipped"]) == (0, False, 0)
        assert client.get("/v1/models/stories").json()["shadow"] == told
        metrics = client.get("/metrics").text
        assert 'lissom_shadow_compared_total{model_name="stories"} 2' in metrics
        assert 'lissom_shadow_disagreement_value{model_name="stories"} 0' in metrics


def test_the_disagreement_is_that_of_the_likeliest_tokens(start: Any, model: Any, noisy: Any, tokenizer: Any) -> None:
    """The oracle: both models run by transformers over prompt and answer."""
    service = shadowed(model, noisy, tokenizer, rollback=False)
    with start(create_app([service])) as url, httpx.Client(base_url=url, timeout=PATIENCE) as client:
        said = text(client, max_tokens=12)
        told = seen(client, lambda shadow: shadow["compared"] == 1)
    prompt = tokenizer(ASK["prompt"]).input_ids
    tokens = torch.tensor([[*prompt, *tokenizer(said, add_special_tokens=False).input_ids]])
    with torch.no_grad():
        ours, theirs = (one(tokens).logits[0, len(prompt) - 1 : -1].argmax(-1) for one in (model, noisy))
    assert 0 < told["disagreement"]["value"] == pytest.approx(float((ours != theirs).double().mean()))


def test_a_shadow_takes_over_where_the_two_part(start: Any, model: Any, noisy: Any, tokenizer: Any) -> None:
    """Nobody who asks meanwhile notices but by what is said, and what was seen is told afterwards as well."""
    alone = LanguageService(model=noisy, tokenizer=tokenizer, name="stories")
    with start(create_app([alone])) as url, httpx.Client(base_url=url, timeout=PATIENCE) as client:
        other = text(client)
    service = shadowed(model, noisy, tokenizer)
    with start(create_app([service])) as url, httpx.Client(base_url=url, timeout=PATIENCE) as client:
        assert text(client) != other
        codes, stop = list[int](), threading.Event()

        def ask() -> None:
            with httpx.Client(base_url=url, timeout=PATIENCE) as one:
                while not stop.is_set():
                    codes.append(one.post("/v1/completions", json=ASK).status_code)

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        told = seen(client, lambda shadow: shadow["rolled_back"])
        assert text(client) == other
        stop.set()
        for thread in threads:
            thread.join()
        assert set(codes) == {200}
        assert (told["verdict"], told["alarm"]) == ("FAIL", True)
        assert told["disagreement"]["low"] > BUDGET.max_drop
        assert 'lissom_shadow_rolled_back{model_name="stories"} 1' in client.get("/metrics").text
        compared = told["compared"]
        text(client)
        assert seen(client, lambda _: True)["compared"] == compared  # it has nobody to compare itself with


def test_an_alarm_alone_changes_nothing(start: Any, model: Any, noisy: Any, tokenizer: Any) -> None:
    service = shadowed(model, noisy, tokenizer, rollback=False)
    with start(create_app([service])) as url, httpx.Client(base_url=url, timeout=PATIENCE) as client:
        before = text(client)
        told = seen(client, lambda shadow: shadow["alarm"], lambda: text(client))
        assert (told["rolled_back"], text(client)) == (False, before)


@pytest.mark.parametrize("rollback", [False, True])
def test_modules_have_shadows_too(start: Any, rollback: bool) -> None:
    double, turned = (lambda x: 2 * x), (lambda x: -2 * x)
    beside = TensorService(module=turned, name="net", signature=SIGNATURE)
    shadow = Shadow(service=beside, share=1.0, budget=BUDGET, rollback=rollback)
    service = TensorService(module=double, name="net", signature=SIGNATURE, shadow=shadow)
    with start(create_app([service])) as url, httpx.Client(base_url=url, timeout=PATIENCE) as client:

        def ask() -> list[float]:
            return list(client.post("/v2/models/net/infer", json=INFER).json()["outputs"][0]["data"])

        assert ask() == [2, 4, 8, 6]
        told = seen(client, lambda shadow: shadow["alarm"], ask)
        assert (told["disagreement"]["value"], told["rolled_back"]) == (1, rollback)
        assert ask() == ([-2, -4, -8, -6] if rollback else [2, 4, 8, 6])
        assert client.get("/v2/models/net").json()["shadow"]["alarm"]


def test_how_far_two_outputs_are_apart() -> None:
    logits = torch.tensor([[0.0, 1.0, 0.5], [2.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    assert apart(logits, logits + 0.1 * torch.rand(4, 3)) == 0
    assert apart(logits, logits[[0, 3, 0, 1]]) == 0.25  # the third row
    assert apart(torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2, 3, 5])) == 0.25
    assert apart(torch.tensor([1.0]), torch.tensor([1.001])) == 0
    assert apart(torch.ones(2), torch.ones(3)) == 1
    assert apart(torch.empty(0, 3), torch.empty(0, 3)) == 0


def test_a_shadow_must_be_alike(model: Any, tokenizer: Any) -> None:
    language = LanguageService(model=model, tokenizer=tokenizer, name="one")
    net = TensorService(module=lambda x: x, name="one", signature=SIGNATURE)
    other = TensorService(module=lambda x: x, name="one", signature={**SIGNATURE, "outputs": SIGNATURE["inputs"]})
    for service, beside, message in (
        (language, net, "is no language model"),
        (net, language, "is a language model"),
        (net, other, "other tensors"),
    ):
        given = type(service)(**{**fields(service), "shadow": Shadow(service=beside)})
        with pytest.raises(DataError, match=message):
            create_app([given])
    with pytest.raises(DataError, match="at most 1"):
        Shadow(service=net, share=0)
    with pytest.raises(DataError, match="shadow itself"):
        Shadow(service=TensorService(**{**fields(net), "shadow": Shadow(service=net)}))


def fields(service: Any) -> dict[str, Any]:
    return {name: getattr(service, name) for name in service.__dataclass_fields__}


def test_folders_have_shadows_in_processes_of_their_own(start: Any, demo_folder: Path, tmp_path: Path) -> None:
    """The original beside its compressed copy; where its process ends, nobody but the comparison waits for it."""
    recipe = lissom.Recipe.of([{"technique": "rtn", "bits": 8}])
    small = lissom.compress_checkpoint(demo_folder, recipe, torch.empty(0, 8, dtype=torch.long), tmp_path / "small")
    shadow = Shadow(service=FolderService(folder=demo_folder, name="original"), share=1.0, budget=BUDGET)
    service = FolderService(folder=small, name="stories", shadow=shadow)
    with start(create_app([service])) as url, httpx.Client(base_url=url, timeout=PATIENCE) as client:
        text(client)
        told = seen(client, lambda shadow: shadow["compared"] == 1)
        assert told["disagreement"]["value"] <= 0.5
        found = subprocess.run(
            ["pgrep", "-P", str(os.getpid()), "-f", "lissom.engine.process"], capture_output=True, text=True, check=True
        )
        processes = [int(pid) for pid in found.stdout.split()]
        assert len(processes) == 2
        os.kill(processes[-1], signal.SIGKILL)  # they were started in this order
        text(client)
        seen(client, lambda shadow: shadow["compared"] > 1, lambda: text(client))


def test_what_cannot_be_compared_is_skipped(start: Any, model: Any, tokenizer: Any) -> None:
    """A prompt that leaves no room to read what was said behind it."""
    with start(create_app([shadowed(model, model, tokenizer)])) as url, httpx.Client(base_url=url) as client:
        context = client.get("/v1/models/stories").json()["max_model_len"]
        asked = {**ASK, "prompt": [5] * (context - 1), "max_tokens": 1}
        assert client.post("/v1/completions", json=asked, timeout=PATIENCE).status_code == 200
        told = seen(client, lambda shadow: shadow["skipped"] == 1)
        assert (told["compared"], told["disagreement"], told["verdict"]) == (0, None, "NEED MORE")


def test_who_has_been_replaced_takes_nobody_with_him(model: Any, noisy: Any, tokenizer: Any) -> None:
    """An alarm about a model that is no longer served changes nothing, and both of its models end with it."""
    import asyncio

    app = create_app([shadowed(model, noisy, tokenizer)])
    models = app.models

    async def run() -> None:
        await models.start()
        old = models.languages["stories"]
        assert old.witness is not None
        await models.load(LanguageService(model=model, tokenizer=tokenizer, name="stories"))
        new = models.languages["stories"]
        for _ in range(100):
            old.witness._take(1.0)
        assert (old.witness.alarm, old.witness.rolled_back) == (True, False)
        assert models.languages["stories"] is new
        for _ in range(PATIENCE * 20):
            if old.line.ended and old.witness.other.line.ended:
                break
            await asyncio.sleep(0.05)
        assert old.witness.other.line.ended
        models.drain()
        await models.stop()

    asyncio.run(run())
