"""``dimec serve``: one tier of a bundle as a server."""

from __future__ import annotations

import json
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from dimec.bundle.manifest import BUNDLE_FILES
from dimec.cli.console import say_json
from dimec.cli.options import Engine
from dimec.core.errors import OptionError
from dimec.core.outputs import check_output_file
from dimec.core.untrusted import read_json, trusting_nothing

_ENGINE, _BATCHING, _LIMITS, _SECURITY = "Engine", "Batching", "Limits", "Security"


class ServedTier(StrEnum):
    """The tiers that can be servers."""

    edge = "edge"
    cloud = "cloud"


def serve(
    tier: Annotated[ServedTier, typer.Argument(help="Which tier.")],
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The folder of an export.")],
    host: Annotated[
        str | None, typer.Option(help="Address to listen on; 127.0.0.1 by default.")
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Port; 8100 by default, 0 takes any free one.")
    ] = None,
    engine: Annotated[
        Engine | None,
        typer.Option(help="onnxruntime by default.", rich_help_panel=_ENGINE),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(help="Threads of one run; by default the engine's.", rich_help_panel=_ENGINE),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(help="Batches run at the same time; 1 by default.", rich_help_panel=_ENGINE),
    ] = None,
    max_batch_tokens: Annotated[
        int | None,
        typer.Option(
            help="Rows times the longest row of a batch; 1024 by default.",
            rich_help_panel=_BATCHING,
        ),
    ] = None,
    max_wait_ms: Annotated[
        float | None,
        typer.Option(
            help="How long a request waits for others on an idle engine; 2 by default.",
            rich_help_panel=_BATCHING,
        ),
    ] = None,
    max_padding: Annotated[
        float | None,
        typer.Option(
            help="Share of padding that a batch may reach; 0.25 by default.",
            rich_help_panel=_BATCHING,
        ),
    ] = None,
    queue: Annotated[
        int | None,
        typer.Option(help="Requests that may wait; 256 by default.", rich_help_panel=_LIMITS),
    ] = None,
    queue_tokens: Annotated[
        int | None,
        typer.Option(
            help="Padded tokens that may wait; 65536 by default.", rich_help_panel=_LIMITS
        ),
    ] = None,
    max_rows: Annotated[
        int | None,
        typer.Option(help="Rows of a request; 256 by default.", rich_help_panel=_LIMITS),
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option(help="Tokens of a row; by default the bundle's.", rich_help_panel=_LIMITS),
    ] = None,
    max_body_bytes: Annotated[
        int | None,
        typer.Option(help="Bytes of a request; 4 MiB by default.", rich_help_panel=_LIMITS),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(
            help="A file that holds the bearer token; the variable DIMEC_TOKEN is the other way.",
            rich_help_panel=_SECURITY,
        ),
    ] = None,
    tls_certificate: Annotated[
        Path | None, typer.Option(help="Certificate chain, PEM.", rich_help_panel=_SECURITY)
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(help="Its key, PEM.", rich_help_panel=_SECURITY)
    ] = None,
    tls_client_ca: Annotated[
        Path | None,
        typer.Option(
            help="What clients' certificates must lead to, PEM: mutual TLS.",
            rich_help_panel=_SECURITY,
        ),
    ] = None,
    insecure: Annotated[
        bool,
        typer.Option(
            "--insecure",
            help="Listen beyond this machine without a token and without TLS.",
            rich_help_panel=_SECURITY,
        ),
    ] = False,
    drain_grace_s: Annotated[
        float | None,
        typer.Option(help="After SIGTERM, refuse with 503 at least so long; 1 by default."),
    ] = None,
    drain_limit_s: Annotated[
        float | None,
        typer.Option(help="After SIGTERM, answer what was taken at most so long; 30 by default."),
    ] = None,
    ready_file: Annotated[
        Path | None, typer.Option(help="Written once the server is ready; removed at its end.")
    ] = None,
    log_level: Annotated[
        str | None, typer.Option(help="debug, info, warning or error; info by default.")
    ] = None,
    settings: Annotated[
        Path | None,
        typer.Option(
            help="JSON file of settings, docs/reference/server.md names all; options go before it."
        ),
    ] = None,
) -> None:
    """Serve a tier over HTTP in the Open Inference Protocol v2, until SIGTERM.

    Once it is ready, a JSON line on stdout says where: `url`, `port`, `tier`, `model_fingerprint`, `pid`.
    Logs are JSON lines on stderr.

    **Example**: `dimec serve edge bundles/sst2 --port 8101`

    **For other machines**: `dimec serve edge B --host 0.0.0.0 --token-file t --tls-certificate c.pem --tls-key k.pem`
    """
    options = {
        "host": host,
        "port": port,
        "engine": engine and str(engine),
        "threads": threads,
        "workers": workers,
        "max_batch_tokens": max_batch_tokens,
        "max_wait_ms": max_wait_ms,
        "max_padding": max_padding,
        "queue_requests": queue,
        "queue_tokens": queue_tokens,
        "max_rows": max_rows,
        "max_length": max_length,
        "max_body_bytes": max_body_bytes,
        "token_file": token_file,
        "tls_certificate": tls_certificate,
        "tls_key": tls_key,
        "tls_client_ca": tls_client_ca,
        "insecure": insecure or None,
        "drain_grace_s": drain_grace_s,
        "drain_limit_s": drain_limit_s,
        "ready_file": ready_file,
        "log_level": log_level,
    }
    given = {name: value for name, value in options.items() if value is not None}
    # The server's libraries are loaded only here: other commands start without them.
    from dimec.runtime.server.server import Ready
    from dimec.runtime.server.server import serve as run
    from dimec.runtime.server.settings import ServerSettings

    def announce(ready: Ready) -> None:
        say_json(json.dumps({"event": "ready", **asdict(ready)}))

    chosen = ServerSettings.of({"tier": str(tier), "bundle": bundle, **_read(settings), **given})
    if chosen.ready_file is not None:
        reads = {
            "--settings": settings,
            "--token-file": chosen.token_file,
            "--tls-certificate": chosen.tls_certificate,
            "--tls-key": chosen.tls_key,
            "--tls-client-ca": chosen.tls_client_ca,
            **{str(path): path for each in BUNDLE_FILES for path in bundle.glob(each)},
        }
        check_output_file(chosen.ready_file, option="--ready-file", inputs=reads)
    run(chosen, announce=announce)


def _read(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    with trusting_nothing(path, OptionError, remedy="give --settings an object in JSON"):
        document = read_json(path)
    if not isinstance(document, dict) or {"tier", "bundle"} & set(document):
        raise OptionError(
            f"--settings {path} must hold an object of settings, without tier and bundle"
        )
    return document
