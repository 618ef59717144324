"""Traces from a device through a tier, as processes of their own, sent to a small receiver of OTLP."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from tests.commands import dimec
from tests.servers import PATIENCE_S, tier_server

from dimec.bundle import Bundle
from dimec.core import tracing
from dimec.data import reviews

TEXTS = list(reviews(40, seed=3).first)[:12]


@contextmanager
def receiver() -> Iterator[tuple[str, list[Any]]]:
    """Take OTLP over HTTP; gives the endpoint, and the spans as they come."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    spans: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                told = {each.key: each.value.string_value for each in resource.resource.attributes}
                for scope in resource.scope_spans:
                    spans.extend((told["service.name"], span) for span in scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", spans
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def attributes(span: Any) -> dict[str, Any]:
    return {
        each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes
    }


def test_a_trace_leads_from_a_text_to_its_tier(tiny_bundle: Bundle) -> None:
    with receiver() as (endpoint, spans):
        wanted = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}
        with (
            tier_server("edge", tiny_bundle.folder, environment=wanted) as edge,
            tier_server(
                "device",
                tiny_bundle.folder,
                *("--edge", edge.url),
                environment={**wanted, "OTEL_SERVICE_NAME": "gateway"},
            ) as server,
        ):
            dimec(
                *("classify", tiny_bundle.folder, "--edge", edge.url, *TEXTS),
                OTEL_EXPORTER_OTLP_ENDPOINT=endpoint,
            )
            caller = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
            answer = httpx.post(
                f"{server.url}/predict",
                json={"inputs": TEXTS},
                headers={"traceparent": caller},
                timeout=PATIENCE_S,
            )
            assert answer.status_code == 200
            assert (server.stop(), edge.stop()) == (0, 0)
    for _, span in spans:
        assert not any(text in str(span) for text in TEXTS)
    by_id = {span.span_id: (service, span) for service, span in spans}
    own: dict[str, int] = {"dimec-device": 0, "gateway": 0}
    for service, span in by_id.values():
        if span.name == "classify":
            own[service] += 1
            assert attributes(span)["dimec.tier"] in ("mobile", "edge", "cloud")
            if service == "gateway":  # its caller's trace goes on
                assert by_id[span.parent_span_id][1].name == "serve"
                assert span.trace_id.hex() == caller.split("-")[1]
        elif span.name == "ask a tier":
            service_of_text, text = by_id[span.parent_span_id]
            assert (service_of_text, text.name) == (service, "classify")
        elif service == "dimec-edge":
            parent = by_id[span.parent_span_id][1]
            assert (span.name, parent.name) == ("serve", "ask a tier")
            assert span.trace_id == parent.trace_id
            assert attributes(span)["dimec.status"] == 200
    assert own == {"dimec-device": len(TEXTS), "gateway": len(TEXTS)}
    names = [(service, span.name) for service, span in by_id.values()]
    asked = sum(name == "ask a tier" for _, name in names)
    assert names.count(("dimec-edge", "serve")) == asked > 0


def test_nothing_is_done_unless_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "opentelemetry.trace", raising=False)
    assert tracing.begin("classify", "INTERNAL") is None
    assert tracing.headers_of(None) == {}
    assert tracing.set_up_tracing("a") is None
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "nowhere")
    assert "nowhere" in str(tracing.set_up_tracing("a"))
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert tracing.set_up_tracing("a") is None
