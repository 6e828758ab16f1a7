"""What the server's own OpenAPI document lets clients send: whatever it is, nothing of the server breaks."""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lissom.server import TensorService, create_app

CASES = 80
BROKEN = ('"type": "server_error"', '"type": "api_error"')  # in an event of a stream, where the status has been sent
SAID = {"messages": [{"role": "user", "content": "Once"}]}
LIKELY = {**SAID, "model": "stories", "max_tokens": 2, "max_completion_tokens": 2, "max_output_tokens": 2}
LEAVES = st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3)
JSON = st.recursive(
    LEAVES, lambda one: st.lists(one, max_size=2) | st.dictionaries(st.text(max_size=3), one, max_size=2)
)
Values = st.SearchStrategy[Any]
Known = Mapping[str, Any]


def values(schema: Mapping[str, Any], known: Known) -> Values:
    """What a schema allows, where others are known by name."""
    if "$ref" in schema:
        return values(known[schema["$ref"].rpartition("/")[2]], known)
    for either in ("anyOf", "oneOf"):
        if either in schema:
            return st.one_of([values(one, known) for one in schema[either]])
    if "const" in schema or "enum" in schema:
        return st.sampled_from(schema.get("enum") or [schema["const"]])
    return KINDS[schema["type"]](schema, known) if "type" in schema else JSON


def integers(schema: Mapping[str, Any], _: Known) -> Values:
    """Whole numbers within the bounds."""
    below = schema.get("maximum", schema.get("exclusiveMaximum", 2**40) - 1)
    return st.integers(int(schema.get("minimum", -(2**40))), int(below))


def numbers(schema: Mapping[str, Any], _: Known) -> Values:
    """Numbers within the bounds."""
    above, positive = schema.get("minimum", schema.get("exclusiveMinimum")), "exclusiveMinimum" in schema
    bounds = {"min_value": above, "max_value": schema.get("maximum"), "exclude_min": positive}
    return st.floats(**bounds, allow_nan=False, allow_infinity=False)


def strings(schema: Mapping[str, Any], known: Known) -> Values:
    """Texts of a pattern or length, or JSON."""
    if schema.get("contentMediaType") == "application/json":
        return values(schema["contentSchema"], known).map(json.dumps)
    if "pattern" in schema:
        return st.from_regex(schema["pattern"], fullmatch=True)
    return st.text(min_size=schema.get("minLength", 0), max_size=min(schema.get("maxLength", 20), 20))


def arrays(schema: Mapping[str, Any], known: Known) -> Values:
    """Short lists."""
    least, most = schema.get("minItems", 0), schema.get("maxItems", 3)
    return st.lists(values(schema.get("items", {}), known), min_size=least, max_size=max(least, min(most, 3)))


@st.composite
def objects(draw: st.DrawFn, schema: Mapping[str, Any], known: Known) -> dict[str, Any]:
    """What is required, and some of the rest; or any names."""
    fields = schema.get("properties")
    if fields is None:
        every, more = schema.get("propertyNames", {}), schema.get("additionalProperties", {})
        name = strings(every, known)
        return draw(st.dictionaries(name, values(more, known) if isinstance(more, dict) else JSON, max_size=2))
    required = schema.get("required", [])
    rest = sorted(fields.keys() - set(required))
    some = draw(st.lists(st.sampled_from(rest), max_size=4, unique=True)) if rest else []
    return {name: draw(values(fields[name], known)) for name in (*required, *some)}


KINDS: dict[str, Callable[[Mapping[str, Any], Known], Values]] = {
    "null": lambda *_: st.none(),
    "boolean": lambda *_: st.booleans(),
    "integer": integers,
    "number": numbers,
    "string": strings,
    "array": arrays,
    "object": objects,
}


@st.composite
def requests(draw: st.DrawFn, document: Mapping[str, Any]) -> tuple[str, str, Any]:
    """A request of the document; half of those that have a body are such that the model has to write."""
    operations = [(path, *one) for path, every in document["paths"].items() for one in every.items()]
    path, method, told = draw(st.sampled_from(operations))
    name = draw(st.sampled_from(["stories", "scale", "nothing"]) | st.text(min_size=1, max_size=5))
    path, known = path.replace("{name}", quote(name, safe="")), document["components"]["schemas"]
    if "requestBody" not in told:
        return method.upper(), path, None
    schema = told["requestBody"]["content"]["application/json"]["schema"]
    body = draw(values(schema, known))
    fields = known[schema["$ref"].rpartition("/")[2]]["properties"]
    likely = {key: value for key, value in LIKELY.items() if key in fields} if draw(st.booleans()) else {}
    return method.upper(), path, {**body, **likely}


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """The document, which is the same whatever is served."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [1]}
    service = TensorService(module=torch.nn.Identity(), name="net", signature={"inputs": [tensor], "outputs": [tensor]})
    told: dict[str, Any] = create_app([service])._assemble().openapi()  # type: ignore[attr-defined]
    return told


def test_whatever_the_document_allows_is_answered(http: httpx.Client, document: dict[str, Any]) -> None:
    """Nothing fails but what a client gave no time for."""
    seen = Counter[tuple[str, int]]()

    @settings(max_examples=CASES)
    @given(request=requests(document))
    def ask(request: tuple[str, str, Any]) -> None:
        method, path, body = request
        answer = http.request(method, path, json=body)
        seen[method, answer.status_code] += 1
        hurried = bool((body or {}).get("timeout"))
        assert answer.status_code < 500 or (hurried and answer.status_code == 504), answer.text
        assert hurried or not any(one in answer.text for one in BROKEN), answer.text

    ask()
    assert min(seen["GET", 200], seen["POST", 200], seen["POST", 400]) > 0
