"""Whether an endpoint serves a model, over a socket."""

import copy
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lissom.errors import DataError
from lissom.server.verify import Endpoint, Judge, Written, verify
from lissom.types import Budget

BUDGET = Budget(max_drop=0.05)


@pytest.fixture
def prompts(tokenizer: Any, demo_folder: Path) -> list[list[int]]:
    tokens = tokenizer((demo_folder / "stories.txt").read_text(encoding="utf-8")[:4000]).input_ids
    return [tokens[start : start + 12] for start in range(0, 360, 12)]


def test_what_serves_the_model_passes(url: str, model: Any, tokenizer: Any, prompts: list[list[int]]) -> None:
    found = verify(Endpoint(f"{url}/v1", "stories"), Judge(model, tokenizer), prompts, BUDGET, tokens=8)
    assert found.certificate.verdict == "PASS"
    assert abs(found.kl.value) < 1e-3
    assert found.likeliest.value == 1
    assert found.largest < 0.01
    assert found.failed == []
    assert found.tokens_per_s > 0


def test_what_serves_another_model_does_not(url: str, model: Any, tokenizer: Any, prompts: list[list[int]]) -> None:
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    found = verify(Endpoint(url, "stories"), Judge(other, tokenizer), prompts, BUDGET, tokens=8)
    assert found.certificate.verdict == "FAIL"
    assert found.kl.low > 0.05
    assert found.likeliest.value < 1


def test_the_gaps_are_those_of_the_definition(model: Any, tokenizer: Any) -> None:
    prompt, new = tokenizer("Once upon a").input_ids, tokenizer(" time there").input_ids
    pieces = [tokenizer.decode([token]) for token in new]
    with torch.inference_mode():
        logits = model(torch.tensor([[*prompt, *new]])).logits[0]
    own = [float(logits[len(prompt) - 1 + at].log_softmax(-1)[token]) for at, token in enumerate(new)]
    gaps, likeliest = Judge(model, tokenizer).seen(
        Written(prompt=prompt, pieces=pieces, logprobs=[-1.0] * len(new), seconds=0)
    )
    assert gaps == pytest.approx([-1 - one for one in own], abs=1e-4)
    assert likeliest.tolist() == [bool(logits[len(prompt) - 1 + at].argmax() == token) for at, token in enumerate(new)]


def test_a_spelling_that_tells_no_token_ends_what_is_judged(model: Any, tokenizer: Any) -> None:
    judge = Judge(model, tokenizer)
    for strange in ("\ufffd", "no such token at all"):
        written = Written(prompt=[5, 6], pieces=[" the", strange, " the"], logprobs=[-1.0] * 3, seconds=0)
        assert len(judge.seen(written)[0]) == 1
    nothing = judge.seen(Written(prompt=[5, 6], pieces=["\ufffd"], logprobs=[-1.0], seconds=0))
    assert [part.size for part in nothing] == [0, 0]


def test_who_does_not_answer_is_named(url: str, model: Any, tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"127\.0\.0\.1:9.*does not answer"):
        Endpoint("http://127.0.0.1:9")
    wrong = Endpoint(url, "nobody")
    with pytest.raises(DataError, match=r"answers 404.*nobody"):
        wrong.write([5, 6], 4, 1.0, 0)
    with pytest.raises(DataError, match=r"answers 404.*nobody"):
        verify(wrong, Judge(model, tokenizer), [[5, 6]] * 3, BUDGET)


def test_log_probabilities_may_come_as_in_chats(model: Any, tokenizer: Any) -> None:
    class Other(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            content = b'{"choices": [{"logprobs": {"content": [{"token": " the", "logprob": -0.5}]}}]}'
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *words: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Other) as server:
        threading.Thread(target=server.handle_request).start()
        found = Endpoint(f"http://127.0.0.1:{server.server_port}", "any").write([5], 1, 0.0, 0)
    assert (list(found.pieces), list(found.logprobs)) == ([" the"], [-0.5])
    assert np.isfinite(Judge(model, tokenizer).seen(found)[0]).all()


def test_answers_that_say_something_else_are_named() -> None:
    answers = [b'{"data": []}', b"{}", b'{"choices": []}', b'{"choices": [{"logprobs": {"tokens": ["a"]}}]}']

    class Other(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            content = answers.pop(0)
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = answer

        def log_message(self, *words: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Other) as server:
        threading.Thread(target=server.serve_forever).start()
        url = f"http://127.0.0.1:{server.server_port}"
        for _ in range(2):
            with pytest.raises(DataError, match="names no model"):
                Endpoint(url)
        for _ in range(2):
            with pytest.raises(DataError, match="no log-probabilities"):
                Endpoint(url, "any").write([5], 1, 1.0, 0)
        server.shutdown()


def test_who_draws_from_the_likeliest_only_is_asked_for_all(url: str) -> None:
    endpoint = Endpoint(url, "stories")
    assert endpoint.draws_from_all([5, 6])
    endpoint.whole = {"top_kk": 0}  # which this server refuses
    assert not endpoint.draws_from_all([5, 6])
    assert endpoint.whole == {}
