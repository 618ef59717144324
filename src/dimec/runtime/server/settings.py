"""What a server can be told, and the checks that need nothing but the settings."""

from __future__ import annotations

import ipaddress
import socket
import ssl
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import BeforeValidator, ConfigDict, model_validator

from dimec.core.errors import OptionError
from dimec.core.options import AUTO_ENGINE, EngineChoice, Options, flags_of, option
from dimec.runtime.device.options import LoadOptions, Place

TOKEN_VARIABLE = "DIMEC_TOKEN"
_SHORTEST_TOKEN = 16
_MOST_UNSENT = 64 * 1024
"""Bytes that the system takes of what a client does not read: by itself it takes megabytes, of each."""


def _origins(value: object) -> object:
    """Read origins as browsers write them."""
    if not isinstance(value, list | tuple):
        return value
    return tuple(_origin(each) if isinstance(each, str) else each for each in value)


def _origin(text: str) -> str:
    parts = urlsplit(text)  # its ValueError is told as it is
    plain = text.isascii() and text.isprintable() and not set(text) & set(" *@?#,;'\"")
    if parts.scheme not in ("http", "https") or not parts.hostname or not plain:
        raise ValueError("give SCHEME://HOST or SCHEME://HOST:PORT, such as https://pages.example")
    if parts.path.strip("/"):
        raise ValueError(f"an origin has no path: leave {parts.path} out")
    usual = {"http": 80, "https": 443}[parts.scheme]
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}" + (
        f":{parts.port}" if parts.port not in (None, usual) else ""
    )


_of_engine = partial(option, group="Engine")
_of_batching = partial(option, group="Batching")
_of_limits = partial(option, group="Limits")
_of_security = partial(option, group="Security")
_of_pages = partial(option, group="Pages")
_of_stopping = partial(option, group="Stopping")
_of_model = partial(option, group="Another model")
_of_logs = partial(option, group="Logs")


class ServerSettings(Options):
    """What a user chooses for a server."""

    model_config = ConfigDict(strict=True, defer_build=True)

    tier: Literal["edge", "cloud", "device"] = option(
        ...,
        "What is served: the tier edge or cloud, or for callers with texts the whole cascade, device.",
        argument=True,
        metavar="TIER",
    )
    bundle: Place = option(..., "The folder of an export.", argument=True, metavar="BUNDLE")
    host: str = option("127.0.0.1", "Address or name to listen on.", basic=True)
    port: int = option(8100, "Port; 0 takes any free one.", basic=True, ge=0, le=65535)
    engine: EngineChoice = _of_engine("auto", f"What runs the graphs: auto is {AUTO_ENGINE}.")
    threads: int | None = _of_engine(
        None,
        "Threads of one run of the engine.",
        basic=True,
        shown_default="the engine's choice",
        ge=1,
        le=1024,
    )
    workers: int = _of_engine(1, "Batches that run at the same time.", ge=1, le=64)
    max_batch_tokens: int = _of_batching(
        1024, "Tokens of a batch: rows times the longest row.", ge=1, le=2**20
    )
    max_wait_ms: float = _of_batching(
        2.0,
        "Milliseconds that a request waits for others while the engine is idle.",
        ge=0,
        le=600_000,
    )
    max_padding: float = _of_batching(
        0.25, "Share of padding, relative to the real tokens, that a batch may reach.", ge=0, le=100
    )
    queue_requests: int = _of_limits(256, "Requests that may wait.", flag="--queue", ge=1, le=2**20)
    queue_tokens: int = _of_limits(65_536, "Padded tokens that may wait.", ge=1, le=2**30)
    max_rows: int = _of_limits(256, "Rows of a request.", ge=1, le=65_536)
    max_length: int | None = _of_limits(
        None, "Tokens of a row.", shown_default="the bundle's", ge=1, le=65_536
    )
    max_body_bytes: int = _of_limits(4 * 2**20, "Bytes of a request.", ge=1024, le=2**30)
    max_connections: int = _of_limits(1024, "Connections, idle ones included.", ge=1, le=2**20)
    default_deadline_ms: float = _of_limits(
        30_000, "Deadline in milliseconds of a request that names none.", gt=0, le=3_600_000
    )
    max_deadline_ms: float = _of_limits(
        120_000, "Longest deadline in milliseconds; longer ones are cut to it.", gt=0, le=3_600_000
    )
    body_timeout_s: float = _of_limits(
        10.0, "Seconds that the body of a request may take to arrive.", gt=0, le=3600
    )
    model: str | None = _of_model(
        None,
        "Of a bundle with another model on this tier: whom to ask, chat:URL#MODEL, tei:URL or oip:URL#MODEL.",
        metavar="MODEL",
        shown_default="what the export was fitted to",
    )
    model_key_file: Place | None = _of_model(
        None,
        "File with the key that the model is asked with.",
        shown_default="for chat: the environment's OPENAI_API_KEY",
    )
    model_price: str | None = _of_model(
        None,
        "What an answer costs: dollars a million tokens, in and out, such as 0.15/0.6, or dollars a call.",
        metavar="IN/OUT|CALL",
        shown_default="the export's",
    )
    at_once: int = _of_model(8, "Questions that are open at a time.", ge=1, le=4096)
    token_file: Place | None = _of_security(
        None,
        "File with the bearer token that clients must send.",
        basic=True,
        shown_default="the environment's DIMEC_TOKEN",
    )
    tls_certificate: Place | None = _of_security(None, "Certificate chain (PEM).", basic=True)
    tls_key: Place | None = _of_security(None, "Its private key (PEM), not encrypted.", basic=True)
    tls_client_ca: Place | None = _of_security(
        None, "Certificates (PEM) that a client's certificate must lead to: mutual TLS."
    )
    insecure: bool = _of_security(
        False, "Listen beyond this machine without a token and without TLS."
    )
    site: Place | None = _of_pages(
        None, "Folder of `dimec web`: its page is served too, to everybody.", basic=True
    )
    allow_origin: Annotated[tuple[str, ...], BeforeValidator(_origins)] = _of_pages(
        (),
        "A page's origin, such as https://pages.example, from which browsers may ask; may be repeated.",
        metavar="ORIGIN",
        cli=list[str],
        shown_default="only the server's own",
    )
    drain_grace_s: float = _of_stopping(
        1.0,
        "After SIGTERM, seconds of refusing with 503 at least, so that balancers notice.",
        ge=0,
        le=3600,
    )
    drain_limit_s: float = _of_stopping(
        30.0, "After SIGTERM, seconds of answering what was accepted at most.", ge=0, le=3600
    )
    ready_file: Place | None = option(
        None, "File that is written once the server is ready and removed when it stops.", basic=True
    )
    log_level: Literal["debug", "info", "warning", "error"] = _of_logs(
        "info", "Lowest level of log lines."
    )
    log_requests: bool = _of_logs(True, "A log line for every request.")

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


class ServeOptions(LoadOptions, ServerSettings):
    """What a user chooses for a server, of whichever kind; also what a settings file holds."""

    tiers_token_file: Place | None = _of_security(
        None,
        "File with the bearer token for the edge and cloud servers.",
        shown_default="the environment's DIMEC_TOKEN",
    )

    @model_validator(mode="after")
    def _of_one_kind(self) -> Self:
        own = set(ServerSettings.model_fields)
        foreign = _OF_TIERS if self.tier == "device" else set(type(self).model_fields) - own
        for name in sorted(self.model_fields_set & foreign):
            flag, _ = flags_of(type(self), name)
            raise ValueError(f"{flag} is no option of `dimec serve {self.tier}`: leave it out")
        return self


_OF_TIERS = {
    *("max_batch_tokens", "max_wait_ms", "max_padding", "max_length"),
    *("model", "model_key_file", "model_price", "at_once"),
}


def read_token(path: Path | None, environment: Mapping[str, str]) -> str | None:
    """Return the bearer token of a file, else the environment's; None where neither is given.

    Raises:
        OptionError: If the file cannot be read, or the token is short or has characters that no header carries.
    """
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
    files = f"the certificate {settings.tls_certificate} and the key {settings.tls_key}"
    try:
        # Without a password function OpenSSL would ask on the terminal.
        context.load_cert_chain(settings.tls_certificate, settings.tls_key, password=lambda: "")
        if settings.tls_client_ca is not None:
            files = f"the client CA {settings.tls_client_ca}"
            context.load_verify_locations(settings.tls_client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ValueError) as exc:
        raise OptionError(
            f"{files} cannot be used ({exc}): give PEM files that belong together, the key not encrypted"
        ) from exc
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
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):  # every connection has it from here
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _MOST_UNSENT)
        listener.bind(address)
    except OSError as exc:
        listener.close()
        raise OptionError(
            f"{settings.host}:{settings.port} cannot be listened on ({exc.strerror or exc}): "
            "choose another --port, or 0 for any free one"
        ) from exc
    return listener
