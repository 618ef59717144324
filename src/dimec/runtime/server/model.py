"""The description of the model that a tier server serves."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dimec.bundle.hidden import Tails
from dimec.runtime.wire.extensions import (
    CODE,
    HIDDEN,
    LABEL_NAMES,
    LAYERS,
    LOGITS,
    MODEL_FINGERPRINT,
    RESUMES_FROM,
)
from dimec.runtime.wire.messages import Parameter

VERSION = "1"


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A tier, as the wire sees it.

    Attributes:
        name: The tier's name.
        platform: Engine and format, as the protocol's metadata has it.
        inputs: Names of the tensors that it takes.
        layers: The exits' layers.
        label_names: The classes' names.
        fingerprint: The encoder's fingerprint.
        vocabulary: Token ids from 0 up to, but not with, this.
        max_length: Tokens of a row.
        tails: The hidden states that it resumes from; None where it starts from tokens alone.
    """

    name: Literal["edge", "cloud"]
    platform: str
    inputs: tuple[str, ...]
    layers: tuple[int, ...]
    label_names: tuple[str, ...]
    fingerprint: str
    vocabulary: int
    max_length: int
    tails: Tails | None = None

    @property
    def parameters(self) -> dict[str, Parameter]:
        """What every response says of the model."""
        return {MODEL_FINGERPRINT: self.fingerprint, LAYERS: json.dumps(self.layers)}

    @property
    def state_name(self) -> str:
        """The tensor in which it takes hidden states, where it takes them."""
        return CODE if self.tails is not None and self.tails.bottleneck is not None else HIDDEN

    def metadata(self) -> dict[str, Any]:
        """Return the protocol's description of the model."""
        logits = [-1, len(self.layers), len(self.label_names)]
        inputs = [{"name": name, "datatype": "INT64", "shape": [-1, -1]} for name in self.inputs]
        parameters = {**self.parameters, LABEL_NAMES: json.dumps(self.label_names)}
        if self.tails is not None:
            shape = [-1, -1] if self.tails.bottleneck else [-1, -1, self.tails.width]
            datatype = self.tails.datatype
            inputs.append({"name": self.state_name, "datatype": datatype, "shape": shape})
            parameters[RESUMES_FROM] = json.dumps(self.tails.layers)
        return {
            "name": self.name,
            "versions": [VERSION],
            "platform": self.platform,
            "inputs": inputs,
            "outputs": [{"name": LOGITS, "datatype": "FP32", "shape": logits}],
            "parameters": parameters,
        }

    def last_exits(self, logits: NDArray[np.float32]) -> dict[int, int]:
        """Return how many rows of logits [rows, exits, classes] ended at which layer."""
        reached = ~np.isnan(logits[:, :, 0])
        last = len(self.layers) - 1 - reached[:, ::-1].argmax(axis=1)
        counts = np.bincount(last, minlength=len(self.layers))
        return {layer: int(n) for layer, n in zip(self.layers, counts, strict=True) if n}
