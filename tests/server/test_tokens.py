"""Tokens and back, and how a chat is written out."""

from typing import Any

import httpx
import pytest

PROMPT = "Once upon a time, there was a zebra."
CHAT: list[dict[str, str]] = [{"role": "developer", "content": "Be brief"}, {"role": "user", "content": "Hello"}]


def counted(client: httpx.Client, **asked: Any) -> dict[str, Any]:
    answer = client.post("/tokenize", json={"model": "stories", **asked})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def text_of(client: httpx.Client, tokens: list[int]) -> str:
    return str(client.post("/detokenize", json={"model": "stories", "tokens": tokens}).json()["prompt"])


def test_tokens_and_back(http: httpx.Client, tokenizer: Any) -> None:
    found = counted(http, prompt=PROMPT, add_special_tokens=False, return_token_strs=True)
    assert found["tokens"] == tokenizer.encode(PROMPT, add_special_tokens=False)
    assert (found["count"], found["max_model_len"]) == (len(found["tokens"]), 1024)
    assert "".join(found["token_strs"]) == text_of(http, found["tokens"]) == PROMPT
    assert counted(http, prompt=PROMPT)["tokens"] == tokenizer(PROMPT).input_ids


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ({}, "system: Be brief.\nuser: Hello.\nassistant:"),
        ({"add_generation_prompt": False}, "system: Be brief.\nuser: Hello.\n"),
        ({"continue_final_message": True}, "system: Be brief.\nuser: Hello"),
        ({"chat_template_kwargs": {"mark": "!"}}, "system: Be brief!\nuser: Hello!\nassistant:"),
    ],
    ids=["answered", "not answered", "continued", "told"],
)
def test_a_chat_is_written_out_as_asked(talking: httpx.Client, how: dict[str, Any], text: str) -> None:
    assert text_of(talking, counted(talking, messages=CHAT, **how)["tokens"]) == text
    asked = {"model": "stories", "messages": CHAT, "max_tokens": 1, **how}
    usage = talking.post("/v1/chat/completions", json=asked).json()["usage"]
    assert usage["prompt_tokens"] == counted(talking, messages=CHAT, **how)["count"]


def test_what_was_read_before_is_counted(http: httpx.Client) -> None:
    asked = {"model": "stories", "prompt": [7] * 40, "max_tokens": 1}
    first, second = (http.post("/v1/completions", json=asked).json()["usage"] for _ in range(2))
    assert first["prompt_tokens"] == second["prompt_tokens"] == 40
    assert [one["prompt_tokens_details"]["cached_tokens"] for one in (first, second)] == [0, 32]


def test_who_has_no_template_is_told_nothing(http: httpx.Client) -> None:
    answer = http.post("/tokenize", json={"model": "stories", "messages": CHAT, "chat_template_kwargs": {"mark": "!"}})
    assert "no chat template" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/tokenize", {}, "give one of prompt and messages"),
        ("/tokenize", {"prompt": "a", "messages": CHAT}, "give one of prompt and messages"),
        (
            "/tokenize",
            {"messages": CHAT, "chat_template_kwargs": {"tokenize": False}},
            "'tokenize' is not for",
        ),
        ("/tokenize", {"messages": CHAT, "chat_template_kwargs": {"messages": "x"}}, "'messages' is not for"),
        (
            "/tokenize",
            {"messages": CHAT, "chat_template_kwargs": {"number": "x"}},
            "template of the model refuses them",
        ),
        ("/detokenize", {"tokens": [2048]}, "possible are 0 to 2047"),
        ("/detokenize", {"tokens": [-1]}, "greater than or equal to 0"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_is_wrong_is_said(talking: httpx.Client, path: str, body: dict[str, Any], message: str) -> None:
    answer = talking.post(path, json={"model": "stories", **body})
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]
