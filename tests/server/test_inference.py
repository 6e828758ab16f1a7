"""The Open Inference Protocol over a socket: JSON tensors, tensors as bytes, and every way to be wrong."""

import json
from typing import Any

import httpx
import numpy as np
import pytest

X: dict[str, Any] = {"name": "x", "shape": [2, 2], "datatype": "FP32", "data": [[1, 2.5], [3, 4]]}
Y: dict[str, Any] = {"name": "y", "shape": [3], "datatype": "INT64", "data": [1, 2, 3]}
INFER = "/v2/models/scale/infer"


def test_the_server_and_the_model_describe_themselves(http: httpx.Client) -> None:
    assert http.get("/v2").json()["extensions"] == ["binary_tensor_data"]
    card = http.get("/v2/models/scale").json()
    assert (card["name"], card["platform"], card["evidence"]["verdict"]) == ("scale", "pytorch", "PASS")
    assert card["inputs"][0] == {"name": "x", "datatype": "FP32", "shape": [-1, 2]}
    assert http.get("/v2/models/scale/ready").json() == {"name": "scale", "ready": True}
    assert http.get("/v2/health/live").status_code == http.get("/v2/health/ready").status_code == 200


@pytest.mark.parametrize("data", [[[1, 2.5], [3, 4]], [1, 2.5, 3, 4]], ids=["nested", "flat"])
def test_json_tensors(http: httpx.Client, data: list[Any]) -> None:
    answer = http.post(INFER, json={"id": "7", "inputs": [Y, {**X, "data": data}]})
    assert answer.json() == {
        "model_name": "scale",
        "id": "7",
        "outputs": [
            {"name": "twice", "shape": [2, 2], "datatype": "FP32", "data": [2.0, 5.0, 6.0, 8.0]},
            {"name": "sum", "shape": [], "datatype": "INT64", "data": [6]},
        ],
    }


def test_only_the_outputs_asked_for(http: httpx.Client) -> None:
    answer = http.post(INFER, json={"inputs": [X, Y], "outputs": [{"name": "sum"}]})
    assert [output["name"] for output in answer.json()["outputs"]] == ["sum"]


def test_tensors_as_bytes(http: httpx.Client) -> None:
    x = np.array([[1, np.inf], [3, 4]], dtype="<f4")
    head = json.dumps(
        {
            "parameters": {"binary_data_output": True},
            "inputs": [
                {"name": "x", "shape": [2, 2], "datatype": "FP32", "parameters": {"binary_data_size": x.nbytes}},
                Y,
            ],
        }
    ).encode()
    headers = {"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"}
    answer = http.post(INFER, content=head + x.tobytes(), headers=headers)
    length = int(answer.headers["Inference-Header-Content-Length"])
    outputs = json.loads(answer.content[:length])["outputs"]
    assert [output["parameters"]["binary_data_size"] for output in outputs] == [16, 8]
    twice, total = answer.content[length : length + 16], answer.content[length + 16 :]
    np.testing.assert_array_equal(np.frombuffer(twice, "<f4").reshape(2, 2), 2 * x)
    assert np.frombuffer(total, "<i8").tolist() == [6]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "inputs: Field required"),
        ({"inputs": [X]}, "['x'] given, the model takes ['x', 'y']"),
        ({"inputs": [X, X, Y]}, "['x', 'x', 'y'] given"),
        ({"inputs": [X, Y], "outputs": [{"name": "z"}]}, "no 'z'; possible are twice, sum"),
        ({"inputs": [{**X, "datatype": "FP64"}, Y]}, "'FP64' given, the model takes 'FP32'"),
        ({"inputs": [{**X, "shape": [4]}, Y]}, "shape [4] given, the model takes [-1, 2]"),
        ({"inputs": [{**X, "data": [1, 2, 3]}, Y]}, "3 values given, shape [2, 2] needs 4"),
        ({"inputs": [{**X, "data": [[1, 2], [3]]}, Y]}, "different lengths"),
        ({"inputs": [{**X, "data": ["a", "b", "c", "d"]}, Y]}, "no FP32"),
        ({"inputs": [X, {**Y, "data": [1, 2, 3.5]}]}, "no INT64"),
        ({"inputs": [X, {**Y, "data": [2**63] * 3}]}, "INT64 goes from"),
        ({"inputs": [X, {**Y, "data": [1, 2, 10**30]}]}, "no INT64"),
        ({"inputs": [X, {**Y, "data": [True, True, True]}]}, "no INT64"),
        ({"inputs": [{**X, "shape": [2, 2], "data": None}, Y]}, "0 values given"),
        ({"inputs": [{**X, "shape": [10**12, 2]}, Y]}, "4 values given"),
        ({"inputs": [{**X, "shape": [-1, 2]}, Y]}, "greater than or equal to 0"),
        ({"inputs": [X, Y], "priority": 1}, "unknown field 'priority'"),
        ({"inputs": [{**X, "data": [1e38, 3e38, 1, 1]}, Y]}, "'twice' holds NaN or infinity"),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else None,
)
def test_what_is_wrong_is_said(http: httpx.Client, body: dict[str, Any], message: str) -> None:
    answer = http.post(INFER, json=body)
    assert answer.status_code == 400
    assert set(answer.json()) == {"error"}
    assert message in answer.json()["error"]


@pytest.mark.parametrize(
    ("length", "content", "message"),
    [
        (None, b"{", "not valid JSON"),
        ("9999", b"{}", "no length within a body of 2 bytes"),
        ("-1", b"{}", "no length within"),
        ("2", b"{}xx", "Field required"),
    ],
)
def test_a_malformed_body_is_refused(http: httpx.Client, length: str | None, content: bytes, message: str) -> None:
    headers = {} if length is None else {"Inference-Header-Content-Length": length}
    answer = http.post(INFER, content=content, headers=headers)
    assert answer.status_code == 400
    assert message in answer.json()["error"]


def test_bytes_that_belong_to_no_input_are_refused(http: httpx.Client) -> None:
    head = json.dumps({"inputs": [X, Y]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    answer = http.post(INFER, content=head + b"four", headers=headers)
    assert "4 bytes behind the JSON belong to no input" in answer.json()["error"]


def test_a_model_that_is_not_served(http: httpx.Client) -> None:
    answer = http.post("/v2/models/stories/infer", json={"inputs": [X]})
    assert answer.status_code == 404
    assert answer.json() == {"error": "model 'stories' is not served here; possible are scale"}
