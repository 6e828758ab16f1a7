"""Requests that wait together are run together, and never at the cost of an answer."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import torch
from torch import Tensor, nn

from lissom.server import TensorService, create_app

PATIENCE = 60  # seconds until a test gives up; no result depends on it


def spec(name: str) -> dict[str, Any]:
    return {"name": name, "datatype": "FP32", "shape": [-1, -1]}


class Held(nn.Module):
    """Runs `function` on what it gets once it is let go, and remembers how many rows it got each time."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.rows: list[int] = []
        self.began, self.go = threading.Event(), threading.Event()

    def forward(self, x: Tensor) -> Tensor:
        self.rows.append(x.shape[0])
        self.began.set()
        assert self.go.wait(PATIENCE)
        return self.function(x)


class Waves:
    """A server of a module, to which requests are sent while it is held by a first one."""

    def __init__(self, start: Any, function: Callable[[Tensor], Tensor], **how: Any) -> None:
        self.module = Held(function)
        signature = {"inputs": [spec("x")], "outputs": [spec("y")]}
        self._service = TensorService(module=self.module, name="held", signature=signature, **how)
        self._start = start

    def __enter__(self) -> "Waves":
        self._running = self._start(create_app([self._service]))
        self._client = httpx.Client(base_url=self._running.__enter__(), timeout=PATIENCE)
        self._pool = ThreadPoolExecutor(16)
        return self

    def __exit__(self, *why: Any) -> None:
        self._pool.shutdown()
        self._client.close()
        self._running.__exit__(*why)

    def ask(self, x: Tensor, **parameters: Any) -> httpx.Response:
        tensor = {"name": "x", "datatype": "FP32", "shape": list(x.shape), "data": x.flatten().tolist()}
        return self._client.post("/v2/models/held/infer", json={"inputs": [tensor], "parameters": parameters})

    def wave(self, inputs: list[Tensor], **parameters: Any) -> list[httpx.Response]:
        """The answers to inputs that all came while the module was held by another."""
        self.module.rows.clear()
        self.module.began.clear()
        self.module.go.clear()
        first = self._pool.submit(self.ask, torch.zeros(1, 2))
        assert self.module.began.wait(PATIENCE)
        before = self.arrived
        others = [self._pool.submit(self.ask, x, **parameters) for x in inputs]
        while self.arrived < before + len(inputs):
            pass
        self.module.go.set()
        assert first.result().status_code == 200
        return [other.result() for other in others]

    @property
    def arrived(self) -> int:
        """How many requests wait."""
        lines = self._client.get("/metrics").text.splitlines()
        return int(next(line for line in lines if line.startswith("lissom_inference_waiting{")).split()[-1])


def answered(response: httpx.Response) -> Tensor:
    (output,) = response.json()["outputs"]
    return torch.tensor(output["data"]).reshape(output["shape"])


def inputs(*rows: int) -> list[Tensor]:
    return [torch.randn(n, 2) for n in rows]


def test_what_waits_is_run_together_once_that_has_been_seen_to_make_no_difference(start: Any) -> None:
    with Waves(start, lambda x: 2 * x) as waves:
        for expected in ([1, 4, 1, 2, 1], [1, 4]):  # at first together and one by one, then only together
            given = inputs(1, 2, 1)
            for x, answer in zip(given, waves.wave(given), strict=True):
                torch.testing.assert_close(answered(answer), 2 * x)
            assert (waves.module.rows[:2], sorted(waves.module.rows)) == (expected[:2], sorted(expected))


def test_a_module_whose_rows_depend_on_each_other_runs_them_apart(start: Any) -> None:
    with Waves(start, lambda x: x - x.mean(0)) as waves:
        for expected in ([1, 5, 2, 3], [1, 2, 3]):
            given = inputs(2, 3)
            for x, answer in zip(given, waves.wave(given), strict=True):
                torch.testing.assert_close(answered(answer), x - x.mean(0))
            assert (waves.module.rows[0], sorted(waves.module.rows)) == (1, sorted(expected))


def test_no_more_rows_than_the_batch_holds_are_run_together(start: Any) -> None:
    with Waves(start, lambda x: x, max_batch=3) as waves:
        waves.wave(inputs(1, 1))
        answers = waves.wave(inputs(2, 2, 1, 5))
        assert all(answer.status_code == 200 for answer in answers)
        assert sorted(waves.module.rows) == [1, 2, 3, 5]


def test_other_shapes_are_run_apart(start: Any) -> None:
    with Waves(start, lambda x: x) as waves:
        waves.wave(inputs(1, 1))
        given = [torch.randn(1, 2), torch.randn(1, 3), torch.randn(2, 2)]
        for x, answer in zip(given, waves.wave(given), strict=True):
            torch.testing.assert_close(answered(answer), x)
        assert sorted(waves.module.rows) == [1, 1, 3]


def refusing(x: Tensor) -> Tensor:
    if (x < -1e6).any():
        raise ValueError("a secret of the inside")
    return x


def test_inputs_that_the_module_fails_on_fail_alone(start: Any) -> None:
    with Waves(start, refusing) as waves:
        good, bad = torch.ones(1, 2), torch.full((1, 2), -1e7)
        for _ in range(2):
            first, wrong, last = waves.wave([good, bad, good])
            assert (first.status_code, wrong.status_code, last.status_code) == (200, 500, 200)
            assert "secret" not in wrong.text


def test_a_request_that_waits_too_long_is_told(start: Any) -> None:
    with Waves(start, lambda x: x) as waves:
        (late,) = waves.wave(inputs(1), timeout=1)
        assert (late.status_code, waves.module.rows) == (504, [1])
        assert "timeout" in late.json()["error"]
        assert waves.ask(torch.ones(1, 2), timeout=10**9).status_code == 200
        assert waves.ask(torch.ones(1, 2), timeout=0).status_code == 400


def test_with_a_delay_requests_are_gathered_until_the_batch_is_full(start: Any) -> None:
    with Waves(start, lambda x: x, max_batch=4, max_delay_ms=1e9) as waves:
        waves.module.go.set()
        with ThreadPoolExecutor(4) as pool:  # each alone would wait for ever
            answers = list(pool.map(waves.ask, inputs(1, 1, 1, 1)))
        assert [answer.status_code for answer in answers] == [200] * 4
        assert waves.module.rows[0] == 4


@pytest.mark.parametrize("shape", [[], [2]], ids=["a scalar", "a fixed size"])
def test_what_is_declared_without_rows_is_run_apart(start: Any, shape: list[int]) -> None:
    signature = {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": shape}],
    }
    module = Held(lambda x: x.sum(0) if shape else x.sum())
    module.go.set()
    service = TensorService(module=module, name="held", signature=signature)
    with start(create_app([service])) as url, ThreadPoolExecutor(4) as pool:
        body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]}
        ask = pool.map(lambda _: httpx.post(f"{url}/v2/models/held/infer", json=body, timeout=PATIENCE), range(4))
        assert [answer.json()["outputs"][0]["data"] for answer in ask] == [[1, 2] if shape else [3]] * 4
    assert module.rows == [1] * 4
