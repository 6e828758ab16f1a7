"""gRPC, by Triton's own client; the same by HTTP."""

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lissom.errors import DataError
from lissom.server import TensorService, create_app
from lissom.server.keys import add_key
from lissom.server.rpc import Place
from tests.server.conftest import SIGNATURE, Scale

grpcclient = pytest.importorskip("tritonclient.grpc")
httpclient = pytest.importorskip("tritonclient.http")


@pytest.fixture(scope="module")
def places(start: Any) -> Iterator[tuple[str, str]]:
    """Where modules are served by gRPC, and where by HTTP."""
    told = list[str]()
    rpc = Place(host="127.0.0.1", port=0, tls=None, announce=told.append)
    services = [
        TensorService(module=Scale(), name="scale", signature=SIGNATURE),
        TensorService(module=broken, name="broken", signature=SIGNATURE),
    ]
    with start(create_app(services, rpc=rpc)) as url:
        yield address(told), url.removeprefix("http://")


def address(told: list[str]) -> str:
    """Where gRPC is, as soon as it is told."""
    for _ in range(600):
        if told:
            return told[0].removeprefix("grpc://")
        time.sleep(0.1)
    pytest.fail("nothing was told")


def broken(*inputs: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("a secret")


@pytest.fixture
def client(places: tuple[str, str]) -> Iterator[Any]:
    with grpcclient.InferenceServerClient(places[0]) as one:
        yield one


X, Y = np.array([[1.0, 2.0], [3.0, 4.0]], dtype=np.float32), np.array([1, 2, 3], dtype=np.int64)


def inputs(kind: Any, x: Any = X, y: Any = Y) -> list[Any]:
    """As one of the clients has them."""
    found = [kind.InferInput("x", list(x.shape), "FP32"), kind.InferInput("y", list(y.shape), "INT64")]
    for one, values in zip(found, (x, y), strict=True):
        one.set_data_from_numpy(values)
    return found


def test_tensors_go_in_and_out(client: Any, places: tuple[str, str]) -> None:
    by_http = httpclient.InferenceServerClient(places[1])
    for one, kind in ((client, grpcclient), (by_http, httpclient)):
        answer = one.infer("scale", inputs(kind), request_id="7")
        np.testing.assert_array_equal(answer.as_numpy("twice"), 2 * X)
        assert answer.as_numpy("sum") == 6
    only = client.infer("scale", inputs(grpcclient), outputs=[grpcclient.InferRequestedOutput("sum")])
    assert (only.as_numpy("twice"), only.as_numpy("sum")) == (None, 6)
    by_http.close()


def test_values_may_be_given_by_kind(places: tuple[str, str]) -> None:
    """Not as bytes, as other clients do."""
    import grpc
    from tritonclient.grpc import service_pb2 as messages
    from tritonclient.grpc import service_pb2_grpc as protocol

    tensor = messages.ModelInferRequest.InferInputTensor
    x = tensor(name="x", datatype="FP32", shape=[1, 2], contents=messages.InferTensorContents(fp32_contents=[1, 2]))
    y = tensor(name="y", datatype="INT64", shape=[3], contents=messages.InferTensorContents(int64_contents=[1, 2, 4]))
    with grpc.insecure_channel(places[0]) as channel:
        stub = protocol.GRPCInferenceServiceStub(channel)
        answer = stub.ModelInfer(messages.ModelInferRequest(model_name="scale", inputs=[x, y], id="a"))
        assert (answer.id, answer.model_name) == ("a", "scale")
        assert np.frombuffer(answer.raw_output_contents[1], dtype=np.int64) == [7]
        wrong = tensor(name="y", datatype="FP16", shape=[3], contents=messages.InferTensorContents())
        with pytest.raises(grpc.RpcError, match="FP16 is given in raw_input_contents"):
            stub.ModelInfer(messages.ModelInferRequest(model_name="scale", inputs=[x, wrong]))
        some = messages.ModelInferRequest(model_name="scale", inputs=[x, y], raw_input_contents=[b"1234"])
        with pytest.raises(grpc.RpcError, match="1 given, and there are 2 inputs"):
            stub.ModelInfer(some)


def test_the_server_and_its_models_say_what_they_are(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("scale")
    assert client.get_server_metadata().name == "lissom"
    card = client.get_model_metadata("scale")
    assert [(one.name, one.datatype, list(one.shape)) for one in card.inputs] == [
        ("x", "FP32", [-1, 2]),
        ("y", "INT64", [3]),
    ]


def test_failures_are_told_in_the_words_of_grpc(client: Any) -> None:
    from tritonclient.utils import InferenceServerException

    for name, x, status, message in (
        ("nothing", X, "NOT_FOUND", "possible are broken, scale"),
        ("scale", X[:, :1], "INVALID_ARGUMENT", "the model takes"),
        ("broken", X, "INTERNAL", "the model failed on these inputs"),
    ):
        with pytest.raises(InferenceServerException, match=message) as refused:
            client.infer(name, inputs(grpcclient, x))
        assert status in str(refused.value.status())
        assert "secret" not in str(refused.value)
    with pytest.raises(InferenceServerException):
        client.get_trace_settings()  # of Triton's own, and not of the protocol


def test_a_key_is_needed_where_there_are_keys(start: Any, tmp_path: Path) -> None:
    from tritonclient.utils import InferenceServerException

    file, told = tmp_path / "keys.json", list[str]()
    key = add_key(file, "alice", requests_per_minute=2.0)
    rpc = Place(host="127.0.0.1", port=0, tls=None, announce=told.append)
    service = TensorService(module=Scale(), name="scale", signature=SIGNATURE)
    with ExitStack() as at_last:
        at_last.enter_context(start(create_app([service], keys=file, rpc=rpc)))
        client = at_last.enter_context(grpcclient.InferenceServerClient(address(told)))
        assert client.is_server_live()
        for headers in ({}, {"authorization": "Bearer wrong"}):
            with pytest.raises(InferenceServerException, match="a valid API key is needed"):
                client.infer("scale", inputs(grpcclient), headers=headers)
        known = {"authorization": f"Bearer {key}"}
        for _ in range(2):
            assert client.infer("scale", inputs(grpcclient), headers=known).as_numpy("sum") == 6
        with pytest.raises(InferenceServerException, match="2 requests a minute"):
            client.infer("scale", inputs(grpcclient), headers={"x-api-key": key})


def test_a_port_that_is_taken_is_told(start: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        rpc = Place(host="127.0.0.1", port=taken.getsockname()[1], tls=None, announce=print)
        app = create_app([TensorService(module=Scale(), name="scale", signature=SIGNATURE)], rpc=rpc)

        async def run() -> None:
            from lissom.server.rpc import answering
            from lissom.server.service import Limits

            async with answering(rpc, app.models, app._keys, Limits(), "0"):
                pass

        import asyncio

        with pytest.raises(DataError, match=r"cannot listen on 127.0.0.1"):
            asyncio.run(run())
