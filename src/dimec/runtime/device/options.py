"""What a user may set on a device: tiers, deadlines, retries, connections, TLS, and how it keeps its state."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from dimec.core.options import DATA, HiddenTypeOption, Options, TextColumns, option

_SERVERS, _RETRIES, _SECURITY = "Servers", "Retries", "Security"
_ENGINE, _STATE, _OUTPUT = "Engine", "State", "Output"


class DeviceSettings(Options):
    """The settings of a `Device`."""

    deadline_ms: float = option(
        5_000.0,
        "Milliseconds that one text may wait for servers. What runs on the device itself is never cut off, so that "
        "there is always an answer.",
        group=_SERVERS,
        gt=0,
        allow_inf_nan=False,
    )
    in_flight: int | None = option(
        None,
        "Texts that are under way at once.",
        group=_SERVERS,
        shown_default="16; 1 for a policy that learns",
        ge=1,
        le=1_024,
    )
    attempts: int = option(
        3, "Requests to one tier for one text, the first included.", group=_RETRIES, ge=1, le=10
    )
    backoff_ms: float = option(
        50.0,
        "Milliseconds before the second attempt; doubled for each further one and drawn from the upper half.",
        group=_RETRIES,
        ge=0,
        allow_inf_nan=False,
    )
    opens_after: int = option(
        5, "Failures in a row after which a tier is left alone for a while.", group=_RETRIES, ge=1
    )
    open_s: float = option(
        2.0,
        "Seconds that it is left alone the first time; doubled with every failed probe.",
        group=_RETRIES,
        ge=0,
        allow_inf_nan=False,
    )
    max_open_s: float = option(
        60.0, "Seconds that it is left alone at most.", group=_RETRIES, ge=0, allow_inf_nan=False
    )
    probe_ms: float = option(
        1_000.0,
        "Milliseconds that a probe of such a tier may take.",
        group=_RETRIES,
        gt=0,
        allow_inf_nan=False,
    )
    connections: int = option(32, "Open connections to one tier at most.", group=_SERVERS, ge=1)
    max_response_bytes: int = option(
        2**20, "Bytes of a response that are read at most.", group=_SERVERS, ge=1_024
    )
    token_needs_tls: bool = option(
        True,
        "Refuse to send the token over plain HTTP to another machine, or send it there too.",
        group=_SECURITY,
        flag="--token-needs-tls/--plain-token",
    )
    needs_fingerprint: bool = option(
        False,
        "Refuse a server that does not say which model it runs; servers of other makers do not say it.",
        group=_SECURITY,
    )
    ca_file: Path | None = option(
        None,
        "Certificates (PEM) that the servers' are checked against.",
        group=_SECURITY,
        shown_default="the well-known authorities",
    )
    certificate_file: Path | None = option(
        None, "The device's own certificate (PEM), for mutual TLS.", group=_SECURITY
    )
    key_file: Path | None = option(
        None, "Its private key (PEM).", group=_SECURITY, shown_default="in the certificate's file"
    )
    proxy: str | None = option(
        None,
        "URL of an HTTP proxy on the way to the servers; the environment's is not used.",
        group=_SERVERS,
    )
    hidden_type: HiddenTypeOption | None = option(
        None,
        "Number format in which hidden states are sent, fp16 or fp32.",
        group=_SERVERS,
        metavar="TYPE",
        shown_default="the bundle's",
        cli=str,
    )
    engine: Literal["onnxruntime", "openvino"] = option(
        "onnxruntime", "What runs the tiers in this process.", group=_ENGINE
    )
    threads: int | None = option(
        None, "Threads of the engine.", group=_ENGINE, shown_default="the engine's choice", ge=1
    )
    snapshot_updates: int = option(
        100,
        "Updates after which what is learnt is written to disk at the latest: the most that a kill loses.",
        group=_STATE,
        ge=1,
    )
    snapshot_s: float = option(
        5.0, "And after so many seconds.", group=_STATE, gt=0, allow_inf_nan=False
    )


class LoadOptions(DeviceSettings):
    """What a user chooses for a device: its settings, and where its tiers and its state are."""

    edge: str | None = option(
        None,
        "URL of the edge tier's server.",
        group=_SERVERS,
        basic=True,
        metavar="URL",
        shown_default="in this process",
    )
    cloud: str | None = option(
        None,
        "URL of the cloud tier's server.",
        group=_SERVERS,
        basic=True,
        metavar="URL",
        shown_default="in this process",
    )
    state: Path | None = option(
        None, "Folder that keeps what the policy learns over restarts.", group=_STATE
    )


class ClassifyOptions(LoadOptions, TextColumns):
    """What a user chooses for a classification."""

    file: Path | None = option(
        None,
        "CSV, TSV, JSONL or parquet; any other file has a text in every line.",
        group=DATA,
        basic=True,
    )
    skip_bad: bool = option(
        False,
        "Leave out lines that cannot be classified, such as invalid UTF-8 or too long ones, and count them.",
        group=DATA,
    )
    token_file: Path | None = option(
        None,
        "File with the bearer token for the servers.",
        group=_SECURITY,
        basic=True,
        shown_default="the environment's DIMEC_TOKEN",
    )
    metrics_file: Path | None = option(
        None,
        "File that keeps the device's counters, FILE.prom, for Prometheus' textfile collector.",
        group=_OUTPUT,
    )
