"""What a device's policy has learnt, kept over restarts.

A folder holds ``state.safetensors``, the policy's arrays with a JSON header, and a lock. The file is replaced in one
step, so that a killed process leaves a whole one. The `Keeper` writes it so often that no more than a stated number
of updates is lost.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from safetensors import SafetensorError

from dimec.core.errors import DimecError, StateError
from dimec.core.files import hold
from dimec.core.tensors import Header, read_arrays, write_tensors
from dimec.core.untrusted import MAX_COUNT, trusting_nothing
from dimec.policies import Policy
from dimec.policies.base import PolicyState

FORMAT = 1
FILE = "state.safetensors"
LOCK = "lock"

_COUNTS = ("counts", "rounds")
_MAX_BYTES = 256 * 2**20
_AFRESH = "remove it to start afresh"

Arrays = Mapping[str, NDArray[Any]]


class StateHeader(Header):
    """What a state says of itself.

    Attributes:
        model_fingerprint: The encoder that the embeddings are of.
        policy: The policy's name.
        policy_fingerprint: The policy with its settings and its arrays before anything was learnt.
        updates: How many updates were learnt.
    """

    format: int = FORMAT
    model_fingerprint: str
    policy: str
    policy_fingerprint: str
    updates: int = Field(default=0, ge=0, le=MAX_COUNT)


@dataclass(frozen=True, slots=True, eq=False)
class LearntState:
    """The arrays of a policy after it has learnt, with their header."""

    header: StateHeader
    arrays: Arrays

    @property
    def updates(self) -> int:
        """How many updates were learnt."""
        return self.header.updates

    @classmethod
    def load(cls, folder: Path) -> LearntState:
        """Read a state.

        Raises:
            StateError: If there is none, or it is damaged or of a newer format.
        """
        path = folder / FILE
        with trusting_nothing(path, StateError, remedy=_AFRESH):
            return cls(*read_arrays(path, StateHeader, known=FORMAT, limit=_MAX_BYTES))

    def check(self, start: Arrays) -> None:
        """Refuse what no device can have learnt from its policy's arrays at the start.

        Raises:
            ValueError: If arrays do not fit the start, or counts do not add up.
        """
        if _shapes(self.arrays) != _shapes(start):
            raise ValueError("its arrays are not those of the policy")
        grown: dict[str, int] = {}
        for name in _COUNTS:
            if name not in start:
                continue
            now = self.arrays[name]
            if now.dtype.kind not in "iu" or (now < start[name]).any():
                raise ValueError(f"its {name} are no counts that grew from the start")
            total = sum(map(int, now.flat))
            if total > MAX_COUNT:
                raise ValueError(f"its {name} are more than {MAX_COUNT}")
            grown[name] = total - sum(map(int, start[name].flat))
        counts, rounds = (grown.get(name, self.updates) for name in _COUNTS)
        # A bandit's side observations count beside the updates; a centroid moves once an update.
        if rounds != self.updates or (counts < rounds if "rounds" in grown else counts != rounds):
            raise ValueError(f"its counts do not add up to its {self.updates} updates")


def policy_fingerprint(policy: Policy) -> str:
    """Return what tells a policy, as it stands, from any other one."""
    state = policy.state()
    document = {"name": policy.name, "depths": asdict(policy.depths), "settings": state.settings}
    digest = hashlib.sha256(json.dumps(document, sort_keys=True).encode())
    for name, array in sorted(state.arrays.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


class Keeper(AbstractContextManager["Keeper"]):
    """Keep what a policy learns in a folder that no other process uses meanwhile.

    `learnt` is called under ``lock``, which guards the policy.

    At most ``every_updates`` updates are lost when the process is killed: the snapshot that is due is written before
    the next one is learnt. A timer writes what is older than ``every_s`` seconds.
    """

    def __init__(
        self,
        folder: Path,
        policy: Policy,
        *,
        model_fingerprint: str,
        every_updates: int,
        every_s: float,
        lock: threading.RLock | None = None,
    ) -> None:
        """Open the folder, or make it, and lock it; ``policy`` is as the bundle holds it.

        Raises:
            StateError: If the state is of another bundle or policy, is damaged, or another process has the folder.
        """
        self.lock = lock or threading.RLock()
        self._folder = folder
        self._every_updates = every_updates
        self._every_s = every_s
        self._timer: threading.Timer | None = None
        self._unsaved = 0
        self._fault: Exception | None = None
        self._header = StateHeader(
            model_fingerprint=model_fingerprint,
            policy=policy.name,
            policy_fingerprint=policy_fingerprint(policy),
        )
        folder.mkdir(parents=True, exist_ok=True)
        busy = StateError(f"{folder} is in use by another device: give each device its own folder")
        self._hold = hold(folder / LOCK, otherwise=busy)
        self.policy = policy
        self.updates = 0
        """How many updates this device has learnt over all restarts."""
        if (folder / FILE).exists():
            try:
                self._resume()
            except DimecError:
                self._hold.close()
                raise

    def _resume(self) -> None:
        """Go on from what is in the folder."""
        found, own = LearntState.load(self._folder), self._header
        if found.header.model_fingerprint != own.model_fingerprint:
            raise StateError(
                f"{self._folder} was learnt on another bundle (another model): give another folder as the state"
            )
        if found.header.policy_fingerprint != own.policy_fingerprint:
            raise StateError(
                f"{self._folder} was learnt by the policy {found.header.policy} of another bundle: give another folder "
                "as the state"
            )
        with trusting_nothing(self._folder / FILE, StateError, remedy=_AFRESH):
            start = self.policy.state()
            found.check(start.arrays)
            arrays = {name: array.copy() for name, array in found.arrays.items()}
            state = PolicyState(start.settings, arrays)
            self.policy = type(self.policy).from_state(self.policy.depths, state)
        self.updates = found.updates

    def learnt(self) -> None:
        """Take note of one update, and write a snapshot where one is due."""
        self.updates += 1
        self._unsaved += 1
        if self._unsaved >= self._every_updates:
            self.save()
        elif self._timer is None:
            self._timer = threading.Timer(self._every_s, self.save)
            self._timer.daemon = True
            self._timer.start()

    def save(self) -> None:
        """Write a snapshot where something is not yet kept; what cannot be written is tried again later."""
        with self.lock:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            if not self._unsaved or self._hold.closed:
                return
            header = self._header.model_copy(update={"updates": self.updates})
            arrays = self.policy.state().arrays
            try:
                write_tensors(self._folder / FILE, arrays, header=header.model_dump())
            except (OSError, SafetensorError) as exc:  # a full disk costs no answer
                self._fault = exc
            else:
                self._unsaved, self._fault = 0, None

    def close(self) -> None:
        """Write what is left and give the folder free.

        Raises:
            StateError: If it cannot be written.
        """
        self.save()
        self._hold.close()
        if self._fault is not None:
            raise StateError(
                f"{self._folder / FILE} could not be written ({self._fault}): {self._unsaved} updates are lost; make "
                "room or choose another folder"
            ) from self._fault

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def forked(self) -> None:
        """Leave the folder to the process that this one was forked from: what is learnt here is not kept."""
        self._hold.close()
        self._timer = None


def _shapes(arrays: Arrays) -> dict[str, tuple[object, ...]]:
    return {name: (array.dtype, array.shape) for name, array in arrays.items()}
