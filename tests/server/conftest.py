"""A real server on a real socket, in a thread so that the shape checks see it too."""

import copy
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
import uvicorn
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from lissom.engine import Engine, Sampling, Sequence

EVIDENCE = {"verdict": "PASS", "max_drop": 0.01}


@contextmanager
def listening(app: Any) -> Iterator[str]:
    """The base URL of the application while it runs."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(app, log_level="critical", access_log=False, timeout_graceful_shutdown=10)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        listener.listen(64)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


class Scale(torch.nn.Module):
    """Twice the first input, and the sum of the second."""

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return 2 * x, y.sum()


SIGNATURE = {
    "inputs": [
        {"name": "x", "datatype": "FP32", "shape": [-1, 2]},
        {"name": "y", "datatype": "INT64", "shape": [3]},
    ],
    "outputs": [
        {"name": "twice", "datatype": "FP32", "shape": [-1, 2]},
        {"name": "sum", "datatype": "INT64", "shape": []},
    ],
}


@pytest.fixture(scope="package")
def start() -> Callable[[Any], AbstractContextManager[str]]:
    """Starts an application; to be used as a context."""
    return listening


@pytest.fixture(scope="package")
def model(demo_folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(demo_folder, dtype=torch.float32).eval()


@pytest.fixture(scope="package")
def tokenizer(demo_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(demo_folder)


@pytest.fixture(scope="package")
def expected(model: Any, tokenizer: Any) -> Sequence:
    """The oracle: the engine itself, whose own oracle is transformers."""
    engine = Engine(model, tokenizer, max_tokens_in_cache=1024)
    sampling = Sampling(temperature=0.0, max_tokens=24, logprobs=2)
    return engine.generate([tokenizer("Once upon a time").input_ids], sampling)[0]


TEMPLATE = """{% for turn in messages %}{{ turn.role }}: {{ turn.content }}{{ mark | default('.') }}
{% endfor %}{% if number %}{{ 1 + number }}{% endif %}{% if add_generation_prompt %}assistant:{% endif %}"""


@pytest.fixture(scope="package")
def talking(model: Any, tokenizer: Any) -> Iterator[httpx.Client]:
    """A server whose model has a chat template."""
    from lissom.server import LanguageService, create_app

    taught = copy.deepcopy(tokenizer)
    taught.chat_template = TEMPLATE
    app = create_app([LanguageService(model=model, tokenizer=taught, name="stories")])
    with listening(app) as base, httpx.Client(base_url=base, timeout=60) as client:
        yield client


@pytest.fixture(scope="package")
def url(model: Any, tokenizer: Any) -> Iterator[str]:
    """A language model and a module, served together without a key."""
    from lissom.server import LanguageService, TensorService, create_app

    services = [
        LanguageService(model=model, tokenizer=tokenizer, name="stories", evidence=EVIDENCE),
        TensorService(module=Scale(), name="scale", signature=SIGNATURE, evidence=EVIDENCE),
    ]
    with listening(create_app(services)) as base:
        yield base


@pytest.fixture
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=60) as client:
        yield client


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as one:
        yield one
