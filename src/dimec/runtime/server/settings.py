"""What a tier server can be told, and the checks that need nothing but the settings."""

from __future__ import annotations

import ipaddress
import socket
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError, model_validator

from dimec.core.errors import OptionError

TOKEN_VARIABLE = "DIMEC_TOKEN"
_SHORTEST_TOKEN = 16
# JSON has no paths.
_Place = Annotated[Path, Strict(strict=False)]


class ServerSettings(BaseModel):
    """Everything that a tier server can be told; unknown keys are refused.

    Attributes:
        tier: Which tier of the bundle is served; also the model's name on the wire.
        bundle: The bundle's folder.
        host: Address or name to listen on.
        port: 0 lets the system choose.
        engine: What runs the graphs.
        threads: Threads of one run of the engine; None leaves it to the engine.
        workers: Batches that run at the same time.
        max_batch_tokens: Rows times the longest row of a batch.
        max_wait_ms: How long a request waits for others while the engine is idle.
        max_padding: Padded over real tokens, less one, that a batch may reach by taking in more.
        queue_requests: Requests that may wait.
        queue_tokens: Padded tokens that may wait.
        max_rows: Rows of a request.
        max_length: Tokens of a row; None takes the bundle's.
        max_body_bytes: Bytes of a request.
        max_connections: Connections, idle ones included.
        default_deadline_ms: The deadline of a request that names none.
        max_deadline_ms: The longest deadline; longer ones are cut to it.
        body_timeout_s: How long a request's body may take to arrive.
        token_file: A file that holds the bearer token; else the environment variable DIMEC_TOKEN.
        tls_certificate: Certificate chain, PEM.
        tls_key: Its key, PEM, not encrypted.
        tls_client_ca: Certificates that a client's certificate must lead to, PEM: mutual TLS.
        insecure: Listen beyond loopback without a token and without TLS.
        drain_grace_s: How long a server that was told to stop refuses at least, so that balancers notice.
        drain_limit_s: How long it answers what it has at most.
        ready_file: Written once the server is ready, removed when it stops being so.
        log_level: From which level on log lines are written.
        log_requests: Whether every request gets a line.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    tier: Literal["edge", "cloud"]
    bundle: _Place
    host: str = "127.0.0.1"
    port: int = Field(default=8100, ge=0, le=65535)
    engine: Literal["onnxruntime", "openvino"] = "onnxruntime"
    threads: int | None = Field(default=None, ge=1, le=1024)
    workers: int = Field(default=1, ge=1, le=64)
    max_batch_tokens: int = Field(default=1024, ge=1, le=2**20)
    max_wait_ms: float = Field(default=2.0, ge=0, le=600_000)
    max_padding: float = Field(default=0.25, ge=0, le=100)
    queue_requests: int = Field(default=256, ge=1, le=2**20)
    queue_tokens: int = Field(default=65_536, ge=1, le=2**30)
    max_rows: int = Field(default=256, ge=1, le=65_536)
    max_length: int | None = Field(default=None, ge=1, le=65_536)
    max_body_bytes: int = Field(default=4 * 2**20, ge=1024, le=2**30)
    max_connections: int = Field(default=1024, ge=1, le=2**20)
    default_deadline_ms: float = Field(default=30_000, gt=0, le=3_600_000)
    max_deadline_ms: float = Field(default=120_000, gt=0, le=3_600_000)
    body_timeout_s: float = Field(default=10.0, gt=0, le=3600)
    token_file: _Place | None = None
    tls_certificate: _Place | None = None
    tls_key: _Place | None = None
    tls_client_ca: _Place | None = None
    insecure: bool = False
    drain_grace_s: float = Field(default=1.0, ge=0, le=3600)
    drain_limit_s: float = Field(default=30.0, ge=0, le=3600)
    ready_file: _Place | None = None
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_requests: bool = True

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key belong together: give both or neither")
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise ValueError("tls_client_ca needs tls_certificate and tls_key")
        if self.drain_grace_s > self.drain_limit_s:
            raise ValueError("drain_grace_s must not exceed drain_limit_s")
        return self

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> ServerSettings:
        """Make settings of plain values.

        Raises:
            OptionError: If a key is unknown or a value is not allowed; names the first.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as exc:
            fault = exc.errors()[0]
            where = ".".join(map(str, fault["loc"]))
            message = fault["msg"].removeprefix("Value error, ")
            known = (
                f"; the settings are {', '.join(cls.model_fields)}"
                if (fault["type"] == "extra_forbidden")
                else ""
            )
            given = f" {fault['input']!r}" if where and not known else ""
            raise OptionError(
                f"setting {where}{given}: {message}{known}" if where else message
            ) from exc


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
    """Return a socket bound to the address of the settings.

    Args:
        settings: Where to listen.
        secured: Whether callers need a token, or the connection is TLS.

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
