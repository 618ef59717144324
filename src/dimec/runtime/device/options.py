"""What a user may set on a device: tiers, deadlines, retries, connections, TLS, and how it keeps its state."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Strict

from dimec.core.options import (
    AUTO_ENGINE,
    DATA,
    EngineChoice,
    HiddenTypeOption,
    Options,
    TextColumns,
    option,
)

Place = Annotated[Path, Strict(strict=False)]
"""A path, which JSON has as a text, in a record that may be strict otherwise."""

_of_servers = partial(option, group="Servers")
_url = partial(_of_servers, basic=True, metavar="URL", shown_default="in this process")
_of_retries = partial(option, group="Retries")
_of_security = partial(option, group="Security")
_of_engine = partial(option, group="Engine")
_of_state = partial(option, group="State")


class DeviceSettings(Options):
    """The settings of a `Device`."""

    model_config = ConfigDict(allow_inf_nan=False)

    deadline_ms: float = _of_servers(
        5_000.0,
        "Milliseconds that one text may wait for servers. What runs on the device itself is never cut off, so that "
        "there is always an answer.",
        gt=0,
    )
    in_flight: int | None = _of_servers(
        None,
        "Texts that wait for servers at once.",
        shown_default="16; 1 for a policy that learns",
        ge=1,
        le=1_024,
    )
    attempts: int = _of_retries(
        3, "Requests to one tier for one text, the first included.", ge=1, le=10
    )
    backoff_ms: float = _of_retries(
        50.0,
        "Milliseconds before the second attempt; doubled for each further one and drawn from the upper half.",
        ge=0,
    )
    opens_after: int = _of_retries(
        5, "Failures in a row after which a tier is left alone for a while.", ge=1
    )
    open_s: float = _of_retries(
        2.0, "Seconds that it is left alone the first time; doubled with every failed probe.", ge=0
    )
    max_open_s: float = _of_retries(60.0, "Seconds that it is left alone at most.", ge=0)
    probe_ms: float = _of_retries(
        1_000.0, "Milliseconds that a probe of such a tier may take.", gt=0
    )
    connections: int = _of_servers(32, "Open connections to one tier at most.", ge=1)
    max_response_bytes: int = _of_servers(
        2**20, "Bytes of a response that are read at most.", ge=1_024
    )
    token_needs_tls: bool = _of_security(
        True,
        "Refuse to send the token over plain HTTP to another machine, or send it there too.",
        flag="--token-needs-tls/--plain-token",
    )
    needs_fingerprint: bool = _of_security(
        False,
        "Refuse a server that does not say which model it runs; servers of other makers do not say it.",
    )
    ca_file: Place | None = _of_security(
        None,
        "Certificates (PEM) that the servers' are checked against.",
        shown_default="the well-known authorities",
    )
    certificate_file: Place | None = _of_security(
        None, "The device's own certificate (PEM), for mutual TLS."
    )
    key_file: Place | None = _of_security(
        None, "Its private key (PEM).", shown_default="in the certificate's file"
    )
    proxy: str | None = _of_servers(
        None, "URL of an HTTP proxy on the way to the servers; the environment's is not used."
    )
    hidden_type: HiddenTypeOption | None = _of_servers(
        None,
        "Number format in which hidden states are sent, fp16 or fp32.",
        metavar="TYPE",
        shown_default="the bundle's",
        cli=str,
    )
    engine: EngineChoice = _of_engine(
        "auto", f"What runs the tiers in this process: auto is {AUTO_ENGINE}."
    )
    threads: int | None = _of_engine(
        None,
        "Threads of the engine.",
        shown_default="all cores: by one text together, by many texts in batches side by side",
        ge=1,
    )
    snapshot_updates: int = _of_state(
        100,
        "Updates after which what is learnt is written to disk at the latest: the most that a kill loses.",
        ge=1,
    )
    snapshot_s: float = _of_state(5.0, "And after so many seconds.", gt=0)


class LoadOptions(DeviceSettings):
    """What a user chooses for a device: its settings, and where its tiers and its state are."""

    edge: str | None = _url(None, "URL of the edge tier's server.")
    cloud: str | None = _url(None, "URL of the cloud tier's server.")
    state: Place | None = _of_state(None, "Folder that keeps what the policy learns over restarts.")


class ClassifyOptions(LoadOptions, TextColumns):
    """What a user chooses for a classification."""

    file: Place | None = option(
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
    token_file: Place | None = _of_security(
        None,
        "File with the bearer token for the servers.",
        basic=True,
        shown_default="the environment's DIMEC_TOKEN",
    )
    metrics_file: Place | None = option(
        None,
        "File that keeps the device's counters, FILE.prom, for Prometheus' textfile collector.",
        group="Output",
    )
