"""Traces by OpenTelemetry: nothing is imported or done where neither an application nor the environment sets it up.

An application that has a tracer provider gets the spans of its devices. Commands set one up of the standard ``OTEL_*``
variables. No span holds a text or a token.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Literal

from dimec.core.version import __version__

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

_EXPORTERS = {"otlp": "otlp_proto_http", "grpc": "otlp_proto_grpc"}
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


def set_up_tracing(service: str) -> str | None:
    """Export traces as the environment says; returns why that cannot be done, None where all is well or unwanted.

    Args:
        service: What the process is called where ``OTEL_SERVICE_NAME`` does not say it.
    """
    known = "otlp" if any(map(os.environ.get, _ENDPOINTS)) else "none"
    name = os.environ.get("OTEL_TRACES_EXPORTER") or known
    if name == "none" or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    if name == "otlp":
        protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get(
            "OTEL_EXPORTER_OTLP_PROTOCOL", ""
        )
        name = _EXPORTERS.get(protocol, _EXPORTERS["otlp"])
    try:
        from opentelemetry import trace
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        return "OTEL_* variables ask for traces, which need: pip install 'dimec[otel]'"
    found = tuple(entry_points(group="opentelemetry_traces_exporter", name=name))
    if not found:
        return f"there is no exporter of traces named {name}: install its package"
    os.environ.setdefault("OTEL_SERVICE_NAME", service)
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(found[0].load()()))
    trace.set_tracer_provider(provider)
    return None


def begin(
    name: str,
    kind: Literal["INTERNAL", "CLIENT", "SERVER"],
    *,
    parent: Span | None = None,
    headers: Mapping[bytes, bytes] | None = None,
) -> Span | None:
    """Begin a span below another, what headers say, or the current one; None where nobody traces."""
    api = sys.modules.get("opentelemetry.trace")
    if api is None:  # then nobody can have set up a provider
        return None
    context = None
    if parent is not None:
        context = api.set_span_in_context(parent)
    elif headers is not None:
        from opentelemetry.propagate import extract

        context = extract(
            {name.decode("latin-1"): value.decode("latin-1") for name, value in headers.items()}
        )
    tracer: Tracer = _tracer()
    return tracer.start_span(name, context=context, kind=api.SpanKind[kind])


def end(span: Span | None, *, error: str | None = None, **attributes: Any) -> None:  # noqa: ANN401
    """End a span with attributes, which are called ``dimec.NAME``; those that are None are left out."""
    if span is None:
        return
    if span.is_recording():
        from opentelemetry.trace import StatusCode

        told = {f"dimec.{name}": value for name, value in attributes.items() if value is not None}
        span.set_attributes(told)
        if error is not None:
            span.set_status(StatusCode.ERROR, error)
    span.end()


def headers_of(span: Span | None) -> dict[str, str]:
    """Return the headers by which a server goes on below a span, `traceparent` in the first place."""
    headers: dict[str, str] = {}
    if span is not None:
        from opentelemetry.propagate import inject
        from opentelemetry.trace import set_span_in_context

        inject(headers, set_span_in_context(span))
    return headers


@cache
def _tracer() -> Tracer:
    from opentelemetry.trace import get_tracer

    return get_tracer("dimec", __version__)
