"""What a user may set on a device: deadlines, retries, breakers, connections, TLS, and how often it keeps its state."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dimec.bundle.hidden import HiddenType
from dimec.core.errors import OptionError


class DeviceSettings(BaseModel):
    """The settings of a `Device`; unknown names are refused.

    Attributes:
        deadline_ms: How long one text may wait for tiers that are servers. What runs on the device itself is not cut
            off, so that there is always an answer.
        in_flight: How many texts of one call or stream are under way at once. By default 16, and 1 for a policy that
            learns, which then meets the texts in order, as in a replay.
        attempts: How often one tier is asked for one text, the first time included.
        backoff_ms: The wait before the second attempt; it doubles with every further one and is drawn from its upper
            half.
        opens_after: After how many failures in a row a tier is left alone for a while.
        open_s: How long it is left alone the first time; it doubles with every failed probe.
        max_open_s: The longest that it is left alone.
        probe_ms: How long the probe may take that asks whether such a tier is ready again.
        connections: The most open connections to one tier.
        max_response_bytes: The largest answer of a server that is read.
        token_needs_tls: Refuse to send the token over plain HTTP to another machine.
        needs_fingerprint: Refuse a server that does not say which model it runs. Servers of other makers do not.
        ca_file: Certificates (PEM) that the servers' are checked against, instead of the well-known authorities.
        certificate_file: The device's own certificate (PEM), where a server asks for one.
        key_file: Its private key (PEM); by default in the certificate's file.
        proxy: URL of an HTTP proxy on the way to the servers; the environment's is not used.
        hidden_type: What hidden states are sent as; by default what the bundle says.
        engine: What runs the tiers that are in-process.
        threads: Threads of that engine; by default its own choice.
        snapshot_updates: What is learnt is kept on disk after so many updates at the latest: the most that a kill
            loses.
        snapshot_s: And after so many seconds.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    deadline_ms: float = Field(default=5_000.0, gt=0, allow_inf_nan=False)
    in_flight: int | None = Field(default=None, ge=1, le=1_024)
    attempts: int = Field(default=3, ge=1, le=10)
    backoff_ms: float = Field(default=50.0, ge=0, allow_inf_nan=False)
    opens_after: int = Field(default=5, ge=1)
    open_s: float = Field(default=2.0, ge=0, allow_inf_nan=False)
    max_open_s: float = Field(default=60.0, ge=0, allow_inf_nan=False)
    probe_ms: float = Field(default=1_000.0, gt=0, allow_inf_nan=False)
    connections: int = Field(default=32, ge=1)
    max_response_bytes: int = Field(default=2**20, ge=1_024)
    token_needs_tls: bool = True
    needs_fingerprint: bool = False
    ca_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None
    proxy: str | None = None
    hidden_type: HiddenType | None = None
    engine: Literal["onnxruntime", "openvino"] = "onnxruntime"
    threads: int | None = Field(default=None, ge=1)
    snapshot_updates: int = Field(default=100, ge=1)
    snapshot_s: float = Field(default=5.0, gt=0, allow_inf_nan=False)

    @classmethod
    def of(cls, **settings: Any) -> DeviceSettings:  # noqa: ANN401
        """Check settings.

        Raises:
            OptionError: If one is unknown or not allowed.
        """
        try:
            return cls(**settings)
        except ValidationError as exc:
            fault = exc.errors()[0]
            name = str(fault["loc"][0])
            if fault["type"] == "extra_forbidden":
                raise OptionError(
                    f"there is no setting {name}: choose from {', '.join(cls.model_fields)}"
                ) from exc
            raise OptionError(
                f"{name} {fault['input']!r}: {fault['msg'][0].lower()}{fault['msg'][1:]}"
            ) from exc
