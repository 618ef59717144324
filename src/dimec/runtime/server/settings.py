"""What a tier server can be told, and the checks that need nothing but the settings."""

from __future__ import annotations

import ipaddress
import socket
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Strict, model_validator

from dimec.core.errors import OptionError
from dimec.core.options import Options, option

TOKEN_VARIABLE = "DIMEC_TOKEN"
_SHORTEST_TOKEN = 16
# JSON has no paths.
_Place = Annotated[Path, Strict(strict=False)]

_ENGINE, _BATCHING, _LIMITS, _SECURITY = "Engine", "Batching", "Limits", "Security"
_STOPPING, _LOGS = "Stopping", "Logs"


class ServerSettings(Options):
    """What a user chooses for a tier server; also what a settings file holds."""

    model_config = ConfigDict(strict=True, defer_build=True)

    tier: Literal["edge", "cloud"] = option(
        ...,
        "Which tier, edge or cloud; also the model's name in requests.",
        argument=True,
        metavar="TIER",
    )
    bundle: _Place = option(..., "The folder of an export.", argument=True, metavar="BUNDLE")
    host: str = option("127.0.0.1", "Address or name to listen on.", basic=True)
    port: int = option(8100, "Port; 0 takes any free one.", basic=True, ge=0, le=65535)
    engine: Literal["onnxruntime", "openvino"] = option(
        "onnxruntime", "What runs the graphs.", group=_ENGINE
    )
    threads: int | None = option(
        None,
        "Threads of one run of the engine.",
        group=_ENGINE,
        basic=True,
        shown_default="the engine's choice",
        ge=1,
        le=1024,
    )
    workers: int = option(1, "Batches that run at the same time.", group=_ENGINE, ge=1, le=64)
    max_batch_tokens: int = option(
        1024, "Tokens of a batch: rows times the longest row.", group=_BATCHING, ge=1, le=2**20
    )
    max_wait_ms: float = option(
        2.0,
        "Milliseconds that a request waits for others while the engine is idle.",
        group=_BATCHING,
        ge=0,
        le=600_000,
    )
    max_padding: float = option(
        0.25,
        "Share of padding, relative to the real tokens, that a batch may reach.",
        group=_BATCHING,
        ge=0,
        le=100,
    )
    queue_requests: int = option(
        256, "Requests that may wait.", group=_LIMITS, flag="--queue", ge=1, le=2**20
    )
    queue_tokens: int = option(
        65_536, "Padded tokens that may wait.", group=_LIMITS, ge=1, le=2**30
    )
    max_rows: int = option(256, "Rows of a request.", group=_LIMITS, ge=1, le=65_536)
    max_length: int | None = option(
        None, "Tokens of a row.", group=_LIMITS, shown_default="the bundle's", ge=1, le=65_536
    )
    max_body_bytes: int = option(4 * 2**20, "Bytes of a request.", group=_LIMITS, ge=1024, le=2**30)
    max_connections: int = option(
        1024, "Connections, idle ones included.", group=_LIMITS, ge=1, le=2**20
    )
    default_deadline_ms: float = option(
        30_000,
        "Deadline in milliseconds of a request that names none.",
        group=_LIMITS,
        gt=0,
        le=3_600_000,
    )
    max_deadline_ms: float = option(
        120_000,
        "Longest deadline in milliseconds; longer ones are cut to it.",
        group=_LIMITS,
        gt=0,
        le=3_600_000,
    )
    body_timeout_s: float = option(
        10.0, "Seconds that the body of a request may take to arrive.", group=_LIMITS, gt=0, le=3600
    )
    token_file: _Place | None = option(
        None,
        "File with the bearer token that clients must send.",
        group=_SECURITY,
        basic=True,
        shown_default="the environment's DIMEC_TOKEN",
    )
    tls_certificate: _Place | None = option(
        None, "Certificate chain (PEM).", group=_SECURITY, basic=True
    )
    tls_key: _Place | None = option(
        None, "Its private key (PEM), not encrypted.", group=_SECURITY, basic=True
    )
    tls_client_ca: _Place | None = option(
        None,
        "Certificates (PEM) that a client's certificate must lead to: mutual TLS.",
        group=_SECURITY,
    )
    insecure: bool = option(
        False, "Listen beyond this machine without a token and without TLS.", group=_SECURITY
    )
    drain_grace_s: float = option(
        1.0,
        "After SIGTERM, seconds of refusing with 503 at least, so that balancers notice.",
        group=_STOPPING,
        ge=0,
        le=3600,
    )
    drain_limit_s: float = option(
        30.0,
        "After SIGTERM, seconds of answering what was accepted at most.",
        group=_STOPPING,
        ge=0,
        le=3600,
    )
    ready_file: _Place | None = option(
        None,
        "File that is written once the server is ready and removed when it stops.",
        basic=True,
    )
    log_level: Literal["debug", "info", "warning", "error"] = option(
        "info", "Lowest level of log lines.", group=_LOGS
    )
    log_requests: bool = option(True, "A log line for every request.", group=_LOGS)

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError(
                "--tls-certificate and --tls-key belong together: give both or neither"
            )
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise ValueError("--tls-client-ca needs --tls-certificate and --tls-key: give them too")
        if self.drain_grace_s > self.drain_limit_s:
            raise ValueError("--drain-grace-s must not exceed --drain-limit-s: change one of them")
        return self


def read_token(settings: ServerSettings, environment: Mapping[str, str]) -> str | None:
    """Return the bearer token that callers must give; None where none was set.

    Raises:
        OptionError: If the file cannot be read, or the token is short or has characters that no header carries.
    """
    path = settings.token_file
    if path is not None:
        try:
            token = path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as exc:
            raise OptionError(f"the token file {path} cannot be read ({exc})") from exc
        source = f"the token in {path}"
    elif TOKEN_VARIABLE in environment:
        token = environment[TOKEN_VARIABLE].strip()
        source = f"the token in {TOKEN_VARIABLE}"
    else:
        return None
    if len(token) < _SHORTEST_TOKEN or not all("!" <= character <= "~" for character in token):
        raise OptionError(
            f"{source} must be at least {_SHORTEST_TOKEN} printable ASCII characters without spaces: "
            "`openssl rand -hex 32` makes one"
        )
    return token


def tls_context(settings: ServerSettings) -> ssl.SSLContext | None:
    """Return what TLS connections are made with; None where no certificate was given.

    Raises:
        OptionError: If a file cannot be read, the key does not fit or is encrypted.
    """
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        # Without a password function OpenSSL would ask on the terminal.
        context.load_cert_chain(settings.tls_certificate, settings.tls_key, password=lambda: "")
    except (OSError, ValueError) as exc:
        raise OptionError(
            f"the certificate {settings.tls_certificate} and the key {settings.tls_key} cannot be used ({exc}): "
            "give PEM files that belong together, the key not encrypted"
        ) from exc
    if settings.tls_client_ca is not None:
        try:
            context.load_verify_locations(settings.tls_client_ca)
        except (OSError, ValueError) as exc:
            raise OptionError(
                f"the client CA {settings.tls_client_ca} cannot be used ({exc}): give a PEM file of certificates"
            ) from exc
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def bind(settings: ServerSettings, *, secured: bool) -> socket.socket:
    """Return a socket bound to the address of the settings; ``secured`` by a token or by TLS.

    Raises:
        OptionError: If the address is unknown or taken, or is beyond loopback and nothing protects it.
    """
    try:
        found = socket.getaddrinfo(
            settings.host or None, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (OSError, UnicodeError) as exc:
        raise OptionError(f"--host {settings.host}: the address cannot be found ({exc})") from exc
    family, kind, protocol, _, address = found[0]
    if not (secured or settings.insecure or ipaddress.ip_address(address[0]).is_loopback):
        raise OptionError(
            f"--host {settings.host} can be reached from other machines: set a token ({TOKEN_VARIABLE} or "
            "--token-file) or TLS (--tls-certificate, --tls-key), or say --insecure"
        )
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as exc:
        listener.close()
        raise OptionError(
            f"{settings.host}:{settings.port} cannot be listened on ({exc.strerror or exc}): "
            "choose another --port, or 0 for any free one"
        ) from exc
    return listener
