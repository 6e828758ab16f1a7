"""Traces of requests for OpenTelemetry, where its environment says to whom they go (OTEL_EXPORTER_OTLP_ENDPOINT).

A span for each request, a child of its client's if that sends a `traceparent`; none holds a key, a prompt or an answer.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.types import ASGIApp

from lissom.errors import DataError

WHERE = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
NOT = "health|metrics"  # what is asked every second


@contextmanager
def traced(app: ASGIApp) -> Iterator[ASGIApp]:
    """The application with spans around its requests, if they are wanted; they are sent on in a thread of their own.

    Raises:
        DataError: they are wanted, and a package for them is not here.
    """
    if not any(os.environ.get(name) for name in WHERE):
        yield app
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.util.http import ExcludeList
    except ImportError as error:
        why = f"a package that is not here ({error})"
        raise DataError(f"serve: traces need {why}; pip install 'lissom[trace]', or unset {WHERE[0]}") from error
    name = os.environ.get("OTEL_SERVICE_NAME", "lissom")
    provider = TracerProvider(resource=Resource.create({"service.name": name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    try:
        yield OpenTelemetryMiddleware(
            app, tracer_provider=provider, excluded_urls=ExcludeList([NOT]), exclude_spans=["receive", "send"]
        )
    finally:
        provider.shutdown()
