"""What a device's policy has learnt, kept over restarts and added up over devices.

A folder holds ``state.safetensors`` (the policy's arrays as they stand, and as they were at the start) with a JSON
header, and a lock. The file is replaced in one step, so that whatever kills the process leaves a whole one; the
`Keeper` writes it so often that no more than a stated number of updates is lost. Everything learnt is a sum or a
count, so that states of devices with one start merge exactly: the start, plus what each of them learnt beyond it.
"""

from __future__ import annotations

import hashlib
import json
import math
import threading
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from safetensors import SafetensorError

from dimec.core.errors import DimecError, OptionError, StateError
from dimec.core.tensors import Header, read_tensors, write_tensors
from dimec.core.untrusted import MAX_COUNT, trusting_nothing
from dimec.policies import POLICIES, Policy, PolicyState
from dimec.runtime.device.locks import hold

FORMAT = 1
FILE = "state.safetensors"
LOCK = "lock"

ADDITIVE = frozenset({"sums", "counts", "rounds", "spent", "stop", "go_on"})
"""The arrays of policies that learn: sums and counts. Any other array of a policy has to be the same in all states."""

_COUNTS = frozenset({"counts", "rounds"})
_MAX_BYTES = 256 * 2**20
_AFRESH = "remove it to start afresh"

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class LearntState:
    """What was learnt, and from which start.

    Attributes:
        model_fingerprint: The encoder that the embeddings are of.
        policy: The policy's name.
        policy_fingerprint: Everything about the policy that does not change while it learns, and its start.
        start: The arrays before anything was learnt.
        arrays: The arrays now.
        sources: How many updates each device has contributed since the start, by the device's id.
        merged: Whether this is several devices' state together; a device that opens it starts from it.
    """

    model_fingerprint: str
    policy: str
    policy_fingerprint: str
    start: Arrays
    arrays: Arrays
    sources: Mapping[str, int]
    merged: bool = False

    @property
    def updates(self) -> int:
        """How many updates were learnt since the start."""
        return sum(self.sources.values())

    @property
    def start_fingerprint(self) -> str:
        """What two states must have in common to be merged."""
        return _digest({}, self.start)

    def save(self, folder: Path) -> None:
        """Write the state; it is whole or the one before is still there."""
        header = {
            "format": FORMAT,
            "model_fingerprint": self.model_fingerprint,
            "policy": self.policy,
            "policy_fingerprint": self.policy_fingerprint,
            "sources": dict(self.sources),
            "merged": self.merged,
        }
        tensors = {
            f"{kind}/{name}": array
            for kind, arrays in (("start", self.start), ("now", self.arrays))
            for name, array in arrays.items()
        }
        write_tensors(folder / FILE, tensors, header=header)

    @classmethod
    def load(cls, folder: Path) -> LearntState:
        """Read a state.

        Raises:
            StateError: If there is none, or it is damaged or of a newer format.
        """
        path = folder / FILE
        header, tensors = read_tensors(
            path,
            _Header,
            fault=StateError,
            remedy=_AFRESH,
            missing="give the folder that a device was started with as its state",
            known=FORMAT,
            limit=_MAX_BYTES,
        )
        with trusting_nothing(path, StateError, remedy=_AFRESH):
            kinds: dict[str, dict[str, NDArray[Any]]] = {"start": {}, "now": {}}
            for name, array in tensors.items():
                kind, _, own = name.partition("/")
                kinds[kind][own] = array
            state = cls(
                model_fingerprint=header.model_fingerprint,
                policy=header.policy,
                policy_fingerprint=header.policy_fingerprint,
                start=kinds["start"],
                arrays=kinds["now"],
                sources=header.sources,
                merged=header.merged,
            )
            state.check()
        return state

    def check(self) -> None:
        """Refuse what no device can have learnt.

        Raises:
            ValueError: If arrays do not fit their start, or a count is beyond what can be counted.
        """
        if _shapes(self.start) != _shapes(self.arrays):
            raise ValueError("its arrays do not fit its start")
        if self.updates > MAX_COUNT:
            raise ValueError(f"it has more than {MAX_COUNT} updates")
        for name in _COUNTS & self.arrays.keys():
            start, now = self.start[name], self.arrays[name]
            if now.dtype.kind not in "iu" or (start < 0).any() or (now < start).any():
                raise ValueError(f"its {name} are no counts that grew from its start")
            if sum(map(int, now.flat)) > MAX_COUNT:
                raise ValueError(f"its {name} are more than {MAX_COUNT}")
        grown = {
            name: int((self.arrays[name] - self.start[name]).sum())
            for name in _COUNTS & self.arrays.keys()
        }
        # A bandit's side observations count beside the updates; a centroid moves once an update.
        if "rounds" in grown:
            fits = grown["rounds"] == self.updates <= grown.get("counts", self.updates)
        else:
            fits = grown.get("counts", self.updates) == self.updates
        if not fits:
            raise ValueError(f"its counts do not add up to its {self.updates} updates")


class _Header(Header):
    model_fingerprint: str
    policy: str
    policy_fingerprint: str
    sources: dict[str, Annotated[int, Field(ge=0, le=MAX_COUNT)]] = Field(max_length=10_000)
    merged: bool


def policy_fingerprint(policy: Policy) -> str:
    """Return what tells a policy, as it stands, from any other one."""
    state = policy.state()
    return _digest(
        {"name": policy.name, "depths": asdict(policy.depths), "settings": state.settings},
        state.arrays,
    )


def merge_states(states: Sequence[LearntState], *, names: Sequence[str] = ()) -> LearntState:
    """Add up what several devices have learnt since their common start; exact, in any order.

    Every sum is the exact sum of its terms, rounded once.

    Args:
        states: At least two of them.
        names: What messages call them.

    Raises:
        StateError: If they are of different bundles or starts, or two hold what one device learnt.
    """
    names = names or [f"state {place}" for place in range(1, len(states) + 1)]
    if len(states) < 2:
        raise OptionError("merging takes at least two states: give the folders of several devices")
    first = states[0]
    kind = POLICIES.get(first.policy)
    if kind is not None and not kind.adds_up:
        raise StateError(
            f"{names[0]} is of the policy {first.policy}, whose alarms are of its own stream: they are not added up"
        )
    seen: dict[str, str] = {}
    for state, name in zip(states, names, strict=True):
        if state.model_fingerprint != first.model_fingerprint:
            raise StateError(
                f"{name} is of another model than {names[0]}: merge states of one bundle"
            )
        if state.policy_fingerprint != first.policy_fingerprint:
            raise StateError(
                f"{name} is of another policy ({state.policy}) than {names[0]} ({first.policy}), or of one that was "
                "fitted otherwise: merge states of one bundle"
            )
        if state.start_fingerprint != first.start_fingerprint:
            raise StateError(
                f"{name} started from another state than {names[0]}: merge states of devices with one start"
            )
        for device in state.sources:
            if device in seen:
                raise StateError(
                    f"{name} and {seen[device]} both hold what the device {device[:8]} learnt: it would be counted "
                    "twice"
                )
            seen[device] = name
    arrays = {
        name: _added(name, start, [state.arrays[name] for state in states])
        for name, start in first.start.items()
    }
    sources = {device: count for state in states for device, count in state.sources.items()}
    merged = replace(first, arrays=arrays, sources=sources, merged=True)
    try:
        merged.check()
    except ValueError as exc:
        raise StateError(f"{names[0]} and the others cannot be merged: {exc}") from exc
    return merged


def _added(name: str, start: NDArray[Any], arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Return start + sum(array - start)."""
    if name not in ADDITIVE:
        if any(not np.array_equal(array, start) for array in arrays):
            raise StateError(f"the states' {name} differ, and nobody knows how to merge them")
        return start
    if start.dtype.kind != "f":
        learnt = np.stack(arrays) - start
        total: NDArray[Any] = start + learnt.sum(axis=0, dtype=start.dtype)
        return total
    terms = np.stack([*arrays, *[-start] * (len(arrays) - 1)], axis=-1)
    flat = terms.reshape(-1, terms.shape[-1]).tolist()
    exact = np.array([math.fsum(each) for each in flat], dtype=start.dtype)
    merged: NDArray[Any] = exact.reshape(start.shape)
    return merged


class Keeper:
    """Keep what a policy learns in a folder that no other process uses meanwhile.

    Not thread-safe by itself: `learnt` is called under the lock that guards the policy, which `lock` is.

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
        """Open the folder, or make it, and take the lock; `policy` is as the bundle holds it.

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
        folder.mkdir(parents=True, exist_ok=True)
        self._hold = hold(
            folder / LOCK,
            otherwise=StateError(
                f"{folder} is in use by another device: give each its own folder, and merge them later"
            ),
        )
        try:
            self._base, self.policy, self.device, self._updates = self._open(
                policy, model_fingerprint
            )
        except DimecError:
            self._hold.close()
            raise

    def _open(self, policy: Policy, model_fingerprint: str) -> tuple[LearntState, Policy, str, int]:
        fingerprint = policy_fingerprint(policy)
        own = policy.state()
        if not (self._folder / FILE).exists():
            base = LearntState(
                model_fingerprint, policy.name, fingerprint, own.arrays, own.arrays, {}
            )
            return base, policy, uuid.uuid4().hex, 0
        found = LearntState.load(self._folder)
        if found.model_fingerprint != model_fingerprint:
            raise StateError(
                f"{self._folder} was learnt on another bundle (another model): give another folder as the state"
            )
        if found.policy_fingerprint != fingerprint:
            raise StateError(
                f"{self._folder} was learnt by the policy {found.policy} of another bundle: give another folder as the "
                "state"
            )
        with trusting_nothing(self._folder / FILE, StateError, remedy=_AFRESH):
            if _shapes(found.arrays) != _shapes(own.arrays):
                raise ValueError(f"its arrays are not those of the policy {policy.name}")
            learnt = type(policy).from_state(
                policy.depths,
                PolicyState(
                    own.settings, {name: array.copy() for name, array in found.arrays.items()}
                ),
            )
        if found.merged or len(found.sources) != 1:
            return (
                replace(found, start=found.arrays, sources={}, merged=False),
                learnt,
                uuid.uuid4().hex,
                0,
            )
        ((device, updates),) = found.sources.items()
        return found, learnt, device, updates

    @property
    def updates(self) -> int:
        """How many updates this device has learnt since its start, over all restarts."""
        return self._updates

    def learnt(self) -> None:
        """Take note of one update, and write a snapshot where one is due."""
        self._updates += 1
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
            if self._unsaved and not self._hold.closed:
                arrays = self.policy.state().arrays
                sources = {self.device: self._updates}
                try:
                    replace(self._base, arrays=arrays, sources=sources).save(self._folder)
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

    def forked(self) -> None:
        """Leave the folder to the process that this one was forked from: what is learnt here is not kept."""
        self._hold.close()
        self._timer = None

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()


def _shapes(arrays: Arrays) -> dict[str, tuple[object, ...]]:
    return {name: (array.dtype, array.shape) for name, array in arrays.items()}


def _digest(document: Mapping[str, object], arrays: Arrays) -> str:
    digest = hashlib.sha256(json.dumps(document, sort_keys=True).encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
