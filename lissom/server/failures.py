"""How a failure is told: in the words of the API that was called, without anything of our inside."""

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException as StarletteHTTPException

from lissom.errors import LissomError

log = logging.getLogger("lissom.server")

MESSAGES = "/v1/messages"  # how the paths of Anthropic's API begin
MESSAGES_KINDS = {
    401: "authentication_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
KINDS = {401: "authentication_error", 404: "not_found_error", 429: "overloaded_error"}
CODES = {401: "invalid_api_key", 404: "not_found", 413: "body_too_large", 429: "queue_full", 503: "unavailable"}


def say(status: int, body: Any, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON response in plain ASCII, so that no text a client sends can break its encoding."""
    text = json.dumps(body, allow_nan=False)
    return Response(text, status, headers=dict(headers or {}), media_type="application/json")


def openai_error(status: int, message: str, param: str | None = None) -> dict[str, Any]:
    """The error object of the OpenAI API."""
    kind = KINDS.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": CODES.get(status)}}


def messages_error(status: int, message: str) -> dict[str, Any]:
    """The error object of Anthropic's API."""
    kind = MESSAGES_KINDS.get(status, "api_error" if status >= 500 else "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": message}}


def refuse(
    path: str, status: int, message: str, *, param: str | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    """The refusal in the shape of the API that the path belongs to."""
    if path.startswith("/v2"):
        body: dict[str, Any] = {"error": message}
    elif path.startswith(MESSAGES):
        body = messages_error(status, message)
    else:
        body = openai_error(status, message, param)
    return say(status, body, headers)


def explain(errors: Sequence[Any]) -> tuple[str, str | None]:
    """The first fault that pydantic found, in one line, and the field it concerns.

    Of a field with several possible types pydantic reports one fault for each; the first is for the simplest type.
    """
    fault = errors[0]
    names = [str(part) for part in fault["loc"] if part != "body"]
    field = next((name for name in names if not name.isdigit()), None)
    if fault["type"] == "json_invalid" and field is None:  # of a field it is the JSON in it
        return "the body is not valid JSON", None
    if fault["type"] == "extra_forbidden":
        return f"unknown field '{'.'.join(names)}'; leave it out", field
    return f"{'.'.join(names) or 'body'}: {fault['msg']}", field


def install(app: FastAPI) -> None:
    """Let the application answer every failure through this module."""

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError | ValidationError)
        message, param = explain(error.errors())
        return refuse(request.url.path, 400, message, param=param)

    async def given(request: Request, error: Exception) -> Response:
        return refuse(request.url.path, 400, str(error))

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, StarletteHTTPException)
        return refuse(request.url.path, error.status_code, error.detail, headers=error.headers)

    async def ours(request: Request, error: Exception) -> Response:
        log.error("%s failed (request %s)", request.url.path, request.scope.get("request_id"), exc_info=error)
        return refuse(request.url.path, 500, "the server failed to answer this request; its log says why")

    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(ValidationError, invalid)
    app.add_exception_handler(LissomError, given)
    app.add_exception_handler(StarletteHTTPException, http)
    app.add_exception_handler(Exception, ours)


def unknown_model(name: str, possible: Sequence[str]) -> HTTPException:
    """404 for a model that is not served here."""
    return HTTPException(404, f"model {name!r} is not served here; possible are {', '.join(possible) or 'none'}")
