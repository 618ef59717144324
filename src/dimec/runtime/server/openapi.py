"""The OpenAPI document of a server, and a page of it that needs no script and no other host.

A tier's document stands in ``openapi.json``; what a server of texts has in place of it or besides, in
``openapi-texts.json``. A server fills in its tier, its limits and what its model takes.
"""

from __future__ import annotations

import copy
import html
import json
from importlib import resources
from typing import Any

from dimec.bundle.hidden import Tails
from dimec.core.version import __version__
from dimec.runtime.server.requests import ServedModel
from dimec.runtime.server.settings import ServerSettings
from dimec.runtime.wire import CODE, DEADLINE_MS, FROM_LAYER, HIDDEN, MASK

_DOCUMENT, _TEXTS = (
    json.loads(resources.files("dimec.runtime.server").joinpath(name).read_text(encoding="utf-8"))
    for name in ("openapi.json", "openapi-texts.json")
)
_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "code{background:#eee;padding:.1em .3em}h2{font-size:1.1rem;margin-top:2rem}td{padding-right:1.5em}"
)


def openapi(settings: ServerSettings, model: ServedModel | None) -> dict[str, Any]:
    """Return the document; what is known of the model goes into it once there is one."""
    document = _named(f"dimec {settings.tier} tier", settings)
    info, parts = document["info"], document["components"]
    parameters = parts["schemas"]["InferRequest"]["properties"]["parameters"]["properties"]
    parameters[DEADLINE_MS]["default"] = settings.default_deadline_ms
    taken = _taken(settings)
    if model is not None:
        info["description"] += (
            f" Exits after layers {list(model.manifest.layers)}, classes {list(model.manifest.label_names)}."
        )
        taken += f" At most {model.max_length} tokens a row."
    tails = None if model is None else model.manifest.tails
    if tails is None:
        del parameters[FROM_LAYER]
    else:
        parameters[FROM_LAYER]["enum"] = list(tails.layers)
        taken += _resuming(tails)
    for path, operations in document["paths"].items():
        if path.endswith("/infer"):
            operations["post"]["description"] += taken
    return document


def openapi_of_texts(settings: ServerSettings) -> dict[str, Any]:
    """Return the document of a server of texts."""
    document, own = _named("dimec text classifier", settings), copy.deepcopy(_TEXTS)
    document["info"] |= own["info"]
    for path, operations in document["paths"].items():
        if path.endswith("/infer"):
            operations["post"] |= own["infer"]
            operations["post"]["description"] += _taken(settings)
    document["paths"] |= own["paths"]
    parts = document["components"]
    parts["responses"]["422"] = own["422"]
    parts["schemas"]["Error"]["properties"]["error_type"] = {"type": "string"}
    asked = parts["schemas"]["InferRequest"]["properties"]
    asked["outputs"]["items"]["properties"]["name"] = {"enum": own["outputs"]}
    parameters = asked["parameters"]["properties"]
    asked["parameters"]["properties"] = {DEADLINE_MS: parameters[DEADLINE_MS]}
    return document


def _named(title: str, settings: ServerSettings) -> dict[str, Any]:
    document: dict[str, Any] = copy.deepcopy(_DOCUMENT)
    document["info"] |= {"title": title, "version": __version__}
    document["components"]["parameters"]["name"]["schema"]["enum"] = [settings.tier]
    return document


def _taken(settings: ServerSettings) -> str:
    return f" At most {settings.max_rows} rows and {settings.max_body_bytes} bytes."


def _resuming(tails: Tails) -> str:
    """Say what a request holds that goes on from hidden states."""
    state = f"{HIDDEN} FP16 or FP32 [rows, length, {tails.width}]"
    if tails.bottleneck is not None:
        state = f"{CODE} UINT8 [rows, bytes] of the bottleneck {tails.bottleneck.name}"
    return (
        f" Or, in place of token ids, {state} with {MASK} and the parameter {FROM_LAYER}; exits up to that layer are "
        "then not reached. Such a state is no anonymous form of the text: it can be inverted."
    )


def as_html(document: dict[str, Any]) -> str:
    """Return the document as a page of plain HTML."""
    info = document["info"]
    title = html.escape(info["title"])
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{_STYLE}</style>",
        f"<h1>{title} <small>{html.escape(info['version'])}</small></h1>",
        f"<p>{html.escape(info['description'])} <a href=openapi.json>openapi.json</a></p>",
    ]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            token = " · bearer token" if "security" in operation else ""
            parts += [
                f"<h2><code>{method.upper()} {html.escape(path)}</code>{token}</h2>",
                f"<p>{html.escape(operation['summary'])}</p>",
                f"<p>{html.escape(operation.get('description', ''))}</p><table>",
            ]
            for status, response in sorted(operation["responses"].items()):
                told = (
                    document["components"]["responses"][status] if "$ref" in response else response
                )
                parts.append(f"<tr><td>{status}<td>{html.escape(told['description'])}")
            parts.append("</table>")
    return "\n".join(parts) + "</html>\n"
