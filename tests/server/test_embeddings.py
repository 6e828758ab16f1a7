"""Vectors of texts, as OpenAI's client asks for them."""

from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import torch

import lissom
from lissom.artifact import open_folder
from lissom.server import FolderService, LanguageService, TensorService, create_app

TEXTS = ["Once upon a time", "there was a very small dog", "Once", "and that was all", "the end"]
PATIENCE = 60


@pytest.fixture(scope="module")
def encoder(text_encoder: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A compressed text encoder."""
    original = open_folder(text_encoder()).model
    inputs = dict.fromkeys(("input_ids", "attention_mask"), torch.ones(2, 5, dtype=torch.long))
    small = lissom.compress_model(original, [inputs], steps=[{"layers": "*", "technique": "rtn", "bits": 8}])
    return open_folder(lissom.save(small, tmp_path_factory.mktemp("encoder") / "small"))


@pytest.fixture(scope="module")
def url(start: Any, encoder: Any, model: Any, tokenizer: Any) -> Iterator[str]:
    """The encoder of a folder in a process of its own, beside a language model and a module."""
    signature = {side: [{"name": side, "datatype": "FP32", "shape": [-1]}] for side in ("inputs", "outputs")}
    services = [
        FolderService(folder=encoder.folder, name="encoder", max_batch=2),
        LanguageService(model=model, tokenizer=tokenizer, name="stories"),
        TensorService(module=lambda x: x, name="net", signature=signature),
    ]
    with start(create_app(services)) as base:
        yield base


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as one:
        yield one


@torch.no_grad()
def alone(encoder: Any, text: str) -> np.ndarray:
    """The oracle: the compressed layers in PyTorch, a text at a time."""
    tokens = torch.tensor([encoder.model.tokenizer.encode(text)])
    vector: np.ndarray = encoder.model(tokens, torch.ones_like(tokens))[0].numpy()
    return vector


@pytest.mark.parametrize("coding", ["float", "base64"])
def test_vectors_are_those_of_the_texts_in_their_order(client: openai.OpenAI, encoder: Any, coding: Any) -> None:
    found = client.embeddings.create(model="encoder", input=TEXTS, encoding_format=coding)
    assert [one.index for one in found.data] == [0, 1, 2, 3, 4]
    for text, one in zip(TEXTS, found.data, strict=True):
        vector: Any = one.embedding
        if coding == "base64" and isinstance(vector, str):
            import base64

            vector = np.frombuffer(base64.b64decode(vector), dtype="<f4")
        np.testing.assert_allclose(np.array(vector), alone(encoder, text), atol=0.02)  # inputs become integers there
    assert found.usage.prompt_tokens == sum(len(encoder.model.tokenizer.encode(text)) for text in TEXTS)


def test_tokens_are_taken_as_they_are(client: openai.OpenAI, encoder: Any) -> None:
    tokens = [encoder.model.tokenizer.encode(text) for text in TEXTS]
    by_text = client.embeddings.create(model="encoder", input=TEXTS[:2])  # the client's own default is base64
    by_tokens = client.embeddings.create(model="encoder", input=tokens[:2])
    single = client.embeddings.create(model="encoder", input=tokens[0])
    for one, other in zip(by_text.data, by_tokens.data, strict=True):
        np.testing.assert_allclose(one.embedding, other.embedding, atol=1e-6)
    np.testing.assert_allclose(single.data[0].embedding, by_text.data[0].embedding, atol=0.02)


def test_vectors_can_be_cut(client: openai.OpenAI) -> None:
    whole = client.embeddings.create(model="encoder", input=TEXTS[0]).data[0].embedding
    first = client.embeddings.create(model="encoder", input=TEXTS[0], dimensions=8).data[0].embedding
    np.testing.assert_allclose(first, np.array(whole[:8]) / np.linalg.norm(whole[:8]), atol=1e-5)


def test_encoders_are_listed_beside_language_models(client: openai.OpenAI, url: str) -> None:
    assert {one.id for one in client.models.list()} == {"encoder", "stories"}
    assert client.models.retrieve("encoder").model_dump()["max_model_len"] == 48
    card = httpx.get(f"{url}/v2/models/encoder").json()
    assert [one["name"] for one in card["inputs"]] == ["input_ids", "attention_mask"]


@pytest.mark.parametrize(
    ("asked", "status", "message"),
    [
        ({"input": "a b " * 48}, 400, "at most 48 are possible"),
        ({"input": [10**6]}, 400, "none of the model's"),
        ({"input": "Once", "dimensions": 33}, 400, "have 32"),
        ({"input": "Once", "dimensions": 0}, 400, "dimensions"),
        ({"input": ["Once", ""]}, 400, "text 1 has no tokens"),
        ({"input": []}, 400, "input"),
        ({"input": [[]]}, 400, "input"),
        ({"input": "Once", "encoding_format": "int8"}, 400, "encoding_format"),
        ({"input": "Once", "model": "stories"}, 404, "possible are encoder"),
        ({"input": "Once", "model": "net"}, 404, "possible are encoder"),
        ({"input": "Once", "truncate": True}, 400, "truncate"),
    ],
)
def test_what_cannot_be_is_refused_by_name(url: str, asked: dict[str, Any], status: int, message: str) -> None:
    answer = httpx.post(f"{url}/v1/embeddings", json={"model": "encoder", **asked}, timeout=PATIENCE)
    assert (answer.status_code, message in answer.json()["error"]["message"]) == (status, True), answer.text
