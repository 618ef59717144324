"""The OpenAPI document of a tier server, and a page of it that needs no script and no other host."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from dimec.core.version import __version__
from dimec.runtime.server.model import ServedModel
from dimec.runtime.server.settings import ServerSettings
from dimec.runtime.wire.extensions import (
    CODE,
    DEADLINE_MS,
    EXIT_THRESHOLD,
    FROM_LAYER,
    HIDDEN,
    LAYERS,
    LOGITS,
    MODEL_FINGERPRINT,
)
from dimec.runtime.wire.messages import HEADER_LENGTH, REQUEST_ID

_ERRORS = {
    "400": "Malformed, or tensors that the model does not take",
    "401": "The bearer token is missing or wrong",
    "404": "No such model",
    "408": "The body did not arrive in time",
    "413": "More bytes, rows or tokens than are taken",
    "415": "A compressed body",
    "429": "The queue is full; Retry-After says when to come back",
    "500": "A fault of the server; its log has the reason under the request id",
    "503": "Starting or stopping",
    "504": "The deadline passed before the request was answered",
}


def openapi(settings: ServerSettings, model: ServedModel | None) -> dict[str, Any]:
    """Return the document; what is known of the model goes into it once there is one."""
    secured: list[dict[str, list[str]]] = [{"bearer": []}]
    name = {
        "name": "name",
        "in": "path",
        "required": True,
        "schema": {"type": "string", "enum": [settings.tier]},
    }
    request_id = {
        "name": REQUEST_ID,
        "in": "header",
        "required": False,
        "schema": {"type": "string", "maxLength": 128},
        "description": "The caller's id for the request: logged, and echoed in the response.",
    }

    def get(
        summary: str,
        schema: dict[str, Any],
        *,
        open_to_all: bool = False,
        parameters: Sequence[dict[str, Any]] = (),
        also: Mapping[str, Any] = MappingProxyType({}),
        media: str = "application/json",
    ) -> dict[str, Any]:
        fine = {"description": "Fine", "content": {media: {"schema": schema}}}
        responses: dict[str, Any] = {"200": fine, **also}
        if not open_to_all:
            responses["401"] = _json(_ERRORS["401"], _ref("Error"))
        return {
            "get": {
                "summary": summary,
                "responses": responses,
                **({} if open_to_all else {"security": secured}),
                **({"parameters": list(parameters)} if parameters else {}),
            }
        }

    unready = {"503": _json(_ERRORS["503"], {"type": "object"})}
    missing = {"404": _json(_ERRORS["404"], _ref("Error")), **unready}
    infer = {
        "post": {
            "summary": "Run rows of tokens through the tier and return the logits of its exits",
            "description": (
                f"Inputs INT64 [rows, length] (narrower integers are taken too), output {LOGITS} FP32 [rows, "
                "exits, classes]; exits that a row did not reach are null in JSON and NaN in binary. Tensors as JSON, "
                f"or in the binary tensor extension with the header {HEADER_LENGTH}."
                + _resuming(model)
            ),
            "parameters": [name, request_id],
            "security": secured,
            "requestBody": {
                "required": True,
                "content": {
                    "application/json": {"schema": _ref("InferRequest")},
                    "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
                },
            },
            "responses": {
                "200": {
                    "description": "Answered",
                    "content": {
                        "application/json": {"schema": _ref("InferResponse")},
                        "application/octet-stream": {
                            "schema": {"type": "string", "format": "binary"}
                        },
                    },
                },
                **{status: _json(what, _ref("Error")) for status, what in _ERRORS.items()},
            },
        }
    }
    model_get = get("Describe the model", {"type": "object"}, parameters=[name], also=missing)
    model_ready = get(
        "Whether the model takes requests", {"type": "object"}, parameters=[name], also=missing
    )
    described = (
        ""
        if model is None
        else f" Exits after layers {list(model.layers)}, classes {list(model.label_names)}."
    )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": f"dimec {settings.tier} tier",
            "version": __version__,
            "description": "Open Inference Protocol v2 over HTTP, on token ids." + described,
        },
        "paths": {
            "/v2": get("Describe the server", {"type": "object"}),
            "/v2/health/live": get(
                "Whether the process answers", {"type": "object"}, open_to_all=True
            ),
            "/v2/health/ready": get(
                "Whether requests are taken",
                {"type": "object"},
                open_to_all=True,
                also=unready,
            ),
            "/v2/models/{name}": model_get,
            "/v2/models/{name}/ready": model_ready,
            "/v2/models/{name}/infer": infer,
            "/v2/models/{name}/versions/1": model_get,
            "/v2/models/{name}/versions/1/ready": model_ready,
            "/v2/models/{name}/versions/1/infer": infer,
            "/metrics": get("Metrics for Prometheus", {"type": "string"}, media="text/plain"),
            "/openapi.json": get("This document", {"type": "object"}),
            "/docs": get("This document as a page", {"type": "string"}, media="text/html"),
        },
        "components": {
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
            "schemas": _schemas(settings, model),
        },
    }


def _resuming(model: ServedModel | None) -> str:
    """Say what else an inference takes where the model goes on from hidden states."""
    if model is None or model.tails is None:
        return ""
    what = f"{HIDDEN} FP16 or FP32 [rows, length, {model.tails.width}]"
    if model.tails.bottleneck is not None:
        what = f"{CODE} UINT8 [rows, bytes] of the bottleneck {model.tails.bottleneck.name}"
    return (
        f" Or, in place of token ids, {what} with attention_mask and the parameter {FROM_LAYER}; exits up to that layer"
        " are then not reached. Such a state is no anonymous form of the text: it can be inverted."
    )


def _from_layer(model: ServedModel | None) -> dict[str, Any]:
    if model is None or model.tails is None:
        return {}
    described = f"With {model.state_name}: after which layer it stands."
    values = list(model.tails.layers)
    return {FROM_LAYER: {"type": "integer", "enum": values, "description": described}}


def _schemas(settings: ServerSettings, model: ServedModel | None) -> dict[str, Any]:
    tensor = {
        "type": "object",
        "required": ["name", "datatype", "shape"],
        "properties": {
            "name": {"type": "string"},
            "datatype": {"type": "string", "examples": ["INT64"]},
            "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
            "data": {"type": "array", "items": {}, "description": "Row-major, flat or nested."},
            "parameters": {
                "type": "object",
                "properties": {"binary_data_size": {"type": "integer"}},
            },
        },
    }
    return {
        "Error": {
            "type": "object",
            "required": ["error"],
            "properties": {"error": {"type": "string"}},
        },
        "Tensor": tensor,
        "InferRequest": {
            "type": "object",
            "required": ["inputs"],
            "properties": {
                "id": {"type": "string"},
                "parameters": {
                    "type": "object",
                    "properties": {
                        EXIT_THRESHOLD: {
                            "type": ["number", "string"],
                            "description": "A row leaves at the first exit that is at least this sure; for each exit "
                            "its own threshold as the JSON text of a list, null for never; without it all exits are "
                            "read.",
                        },
                        DEADLINE_MS: {
                            "type": "number",
                            "default": settings.default_deadline_ms,
                            "description": "What is left of the caller's time, counted from arrival.",
                        },
                        **_from_layer(model),
                        "binary_data_output": {"type": "boolean", "default": False},
                    },
                },
                "inputs": {"type": "array", "items": _ref("Tensor")},
                "outputs": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "properties": {
                            "name": {"const": LOGITS},
                            "parameters": {
                                "type": "object",
                                "properties": {"binary_data": {"type": "boolean"}},
                            },
                        },
                    },
                },
            },
        },
        "InferResponse": {
            "type": "object",
            "required": ["model_name", "outputs"],
            "properties": {
                "model_name": {"type": "string"},
                "model_version": {"type": "string"},
                "id": {"type": "string"},
                "parameters": {
                    "type": "object",
                    "properties": {
                        MODEL_FINGERPRINT: {"type": "string"},
                        LAYERS: {
                            "type": "string",
                            "description": "The exits' layers, as the JSON text of a list.",
                        },
                    },
                },
                "outputs": {"type": "array", "items": _ref("Tensor")},
            },
        },
    }


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _json(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def page(document: dict[str, Any]) -> str:
    """Return the document as a page of plain HTML."""
    info = document["info"]
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        f"<title>{html.escape(info['title'])}</title>",
        "<style>body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
        "code{background:#eee;padding:.1em .3em}h2{font-size:1.1rem;margin-top:2rem}td{padding-right:1.5em}</style>",
        f"<h1>{html.escape(info['title'])} <small>{html.escape(info['version'])}</small></h1>",
        f"<p>{html.escape(info['description'])} <a href=openapi.json>openapi.json</a></p>",
    ]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            token = " · bearer token" if operation.get("security") else ""
            parts.append(f"<h2><code>{method.upper()} {html.escape(path)}</code>{token}</h2>")
            parts.append(f"<p>{html.escape(operation['summary'])}</p>")
            parts.append(f"<p>{html.escape(operation.get('description', ''))}</p><table>")
            parts += [
                f"<tr><td>{status}<td>{html.escape(response['description'])}"
                for status, response in sorted(operation["responses"].items())
            ]
            parts.append("</table>")
    return "\n".join(parts) + "</html>\n"
