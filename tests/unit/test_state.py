"""What a device has learnt: kept, refused, and killed at any moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from threading import Timer

import numpy as np
import pytest

from dimec.core.errors import StateError
from dimec.core.tensors import write_tensors
from dimec.core.tiers import Depths
from dimec.core.untrusted import MAX_COUNT
from dimec.policies import POLICIES, Calibration, Policy
from dimec.policies.centroids import Centroids
from dimec.policies.dimec_dc import DimecDcAdaptive, DimecDcFixed
from dimec.runs.exit_table import TierTables
from dimec.runtime.device.state import (
    FILE,
    Arrays,
    Keeper,
    LearntState,
    StateHeader,
    policy_fingerprint,
)
from tests.servers import wait_for
from tests.unit.tables import DEPTHS, meet, random_table

TABLES = TierTables(random_table(400)).with_exit_zero


def adaptive(seed: int = 1) -> DimecDcAdaptive:
    rng = np.random.default_rng(seed)
    centroids = Centroids(rng.normal(size=(3, 8)) * 10, np.array([5, 3, 2]))
    return DimecDcAdaptive(DEPTHS["dc"], centroids, alpha=0.6, beta=0.1)


def keeper(
    folder: Path,
    policy: Policy | None = None,
    *,
    every: int = 4,
    seconds: float = 3_600,
    model: str = "m",
) -> Keeper:
    return Keeper(
        folder,
        policy or adaptive(),
        model_fingerprint=model,
        every_updates=every,
        every_s=seconds,
    )


def learn(kept: Keeper, rows: range) -> None:
    """Let the policy meet rows of the table, as a device would."""
    for row in rows:
        meet(kept.policy, TABLES, row)
        kept.learnt()


@pytest.mark.parametrize("name", [name for name, policy in POLICIES.items() if policy.learns])
def test_what_was_learnt_survives_a_restart(name: str, tmp_path: Path) -> None:
    policy = POLICIES[name].fit(Calibration(random_table(200, seed=1), DEPTHS))
    with keeper(tmp_path, policy.fresh()) as first:
        learn(first, range(40))
    with keeper(tmp_path, policy.fresh()) as again:
        assert again.updates == 40
        for key, array in again.policy.state().arrays.items():
            np.testing.assert_array_equal(array, first.policy.state().arrays[key])
        learn(again, range(40, 60))
        assert again.updates == 60


def test_a_snapshot_is_written_after_so_many_updates(tmp_path: Path) -> None:
    with keeper(tmp_path, every=4) as kept:
        learn(kept, range(3))
        assert not (tmp_path / FILE).exists()
        learn(kept, range(3, 6))
        assert LearntState.load(tmp_path).updates == 4
    assert LearntState.load(tmp_path).updates == 6


def test_a_snapshot_is_written_after_so_many_seconds(tmp_path: Path) -> None:
    with keeper(tmp_path, every=1_000, seconds=0.05) as kept:
        learn(kept, range(2))
        assert all(each.daemon for each in threading.enumerate() if isinstance(each, Timer))
        wait_for((tmp_path / FILE).exists, "a snapshot")
        assert LearntState.load(tmp_path).updates == 2


def test_a_state_of_another_bundle_is_refused(tmp_path: Path) -> None:
    with keeper(tmp_path) as kept:
        learn(kept, range(5))
    with pytest.raises(StateError, match="another model"):
        keeper(tmp_path, model="other")
    with pytest.raises(StateError, match="another bundle"):
        keeper(tmp_path, adaptive(seed=2))
    with keeper(tmp_path) as again:
        assert again.updates == 5
        assert again.policy.depths == kept.policy.depths


def test_a_folder_serves_one_device_at_a_time(tmp_path: Path) -> None:
    with keeper(tmp_path), pytest.raises(StateError, match="in use"):
        keeper(tmp_path)
    keeper(tmp_path).close()


def test_a_damaged_state_is_refused(tmp_path: Path) -> None:
    with keeper(tmp_path) as kept:
        learn(kept, range(5))
    whole = (tmp_path / FILE).read_bytes()
    damaged = [whole[:length] for length in range(0, len(whole), 97)]
    for content in (*damaged, b"rubbish", b"\xff" * 64):
        (tmp_path / FILE).write_bytes(content)
        with pytest.raises(StateError, match=FILE):
            keeper(tmp_path)
    (tmp_path / FILE).write_bytes(whole)
    state = LearntState.load(tmp_path)
    for change in ({"format": 2}, {"updates": 4}):
        header = {**state.header.model_dump(), **change}
        write_tensors(tmp_path / FILE, state.arrays, header=header)
        with pytest.raises(StateError, match=FILE):
            keeper(tmp_path)


def test_what_cannot_be_written_costs_no_answer_and_is_told_at_the_end(tmp_path: Path) -> None:
    kept = keeper(tmp_path, every=2)
    (tmp_path / f"{FILE}.partial").mkdir()  # nothing can be written there
    learn(kept, range(5))
    assert kept.updates == 5
    with pytest.raises(StateError, match="5 updates are lost"):
        kept.close()
    keeper(tmp_path / "elsewhere").close()


_LEARNER = """
import sys
from pathlib import Path
from tests.unit.test_state import keeper, learn
with keeper(Path(sys.argv[1]), every=int(sys.argv[2])) as kept:
    print(kept.updates, flush=True)
    for row in range(1_000_000):
        learn(kept, range(row % 400, row % 400 + 1))
        print(kept.updates, flush=True)
"""


def test_kill_9_at_any_moment_loses_no_more_than_the_bound(tmp_path: Path) -> None:
    every, reached = 7, 0
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for turn in range(6):
        process = subprocess.Popen(
            [sys.executable, "-c", _LEARNER, str(tmp_path), str(every)],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=Path(__file__).parents[2],
        )
        assert process.stdout is not None
        with process, process.stdout as said:
            begun = int(said.readline())
            assert begun >= reached - every
            for _ in range(23 + 31 * turn):
                said.readline()
            time.sleep(0.003 * turn)
            process.send_signal(signal.SIGKILL)
            rest = said.read().splitlines()
            process.wait()
        reached = max([begun + 23 + 31 * turn, *(int(line) for line in rest[:-1] if line)])
        saved = LearntState.load(tmp_path)
        assert saved.updates >= reached - every
        assert saved.arrays["counts"].sum() == 10 + saved.updates
    with keeper(tmp_path) as kept:
        assert kept.updates == saved.updates


def learnt(updates: int, **arrays: list[int] | list[float]) -> LearntState:
    header = StateHeader(model_fingerprint="m", policy="p", policy_fingerprint="f", updates=updates)
    return LearntState(header, {name: np.array(each) for name, each in arrays.items()})


CENTROIDS = {"counts": np.array([5, 3])}
BANDIT = {"counts": np.array([5, 3]), "rounds": np.array([2])}


@pytest.mark.parametrize(
    ("start", "state"),
    [
        (CENTROIDS, learnt(3, counts=[6, 5])),
        (CENTROIDS, learnt(0, counts=[5, 3])),
        (CENTROIDS, learnt(MAX_COUNT - 8, counts=[MAX_COUNT - 3, 3])),
        (BANDIT, learnt(3, counts=[6, 5], rounds=[5])),
        (BANDIT, learnt(1, counts=[9, 9], rounds=[3])),  # side observations count too
        ({"sums": np.zeros(2)}, learnt(7, sums=[1.0, 2.0])),
    ],
)
def test_what_a_device_can_have_learnt(start: Arrays, state: LearntState) -> None:
    state.check(start)


@pytest.mark.parametrize(
    ("start", "state"),
    [
        (CENTROIDS, learnt(3, counts=[6, 4])),
        (CENTROIDS, learnt(1, counts=[6, 4])),
        (CENTROIDS, learnt(1, counts=[7, 2])),  # one has shrunk
        (CENTROIDS, learnt(0, counts=[5, 3, 0])),
        (CENTROIDS, learnt(0, counts=[5.0, 3.0])),
        (CENTROIDS, learnt(0, numbers=[5, 3])),
        (CENTROIDS, learnt(MAX_COUNT - 7, counts=[MAX_COUNT - 2, 3])),
        ({"counts": np.array([5.0, 3.0])}, learnt(1, counts=[6.0, 3.0])),
        (BANDIT, learnt(3, counts=[6, 4], rounds=[5])),
        (BANDIT, learnt(3, counts=[6, 5], rounds=[4])),
        (BANDIT, learnt(3, counts=[6, 5], rounds=[6])),
    ],
)
def test_what_no_device_can_have_learnt(start: Arrays, state: LearntState) -> None:
    with pytest.raises(ValueError, match="its "):
        state.check(start)


def test_a_policy_is_told_from_others_by_all_that_it_is() -> None:
    at = {"alpha": 0.6, "beta": 0.1}

    def centroids(value: float = 1.0, counts: tuple[int, ...] = (5, 3, 2)) -> Centroids:
        return Centroids(np.full((3, 2), value), np.array(counts))

    one = policy_fingerprint(DimecDcAdaptive(DEPTHS["dc"], centroids(), **at))
    assert policy_fingerprint(DimecDcAdaptive(DEPTHS["dc"], centroids(), **at)) == one
    others = [
        DimecDcFixed(DEPTHS["dc"], centroids(), **at),
        DimecDcAdaptive(Depths(2, 4, 6), centroids(), **at),
        DimecDcAdaptive(DEPTHS["dc"], centroids(), **{**at, "beta": 0.2}),
        DimecDcAdaptive(DEPTHS["dc"], centroids(2.0), **at),
        DimecDcAdaptive(DEPTHS["dc"], centroids(counts=(5, 2, 3)), **at),
    ]
    assert len({one, *map(policy_fingerprint, others)}) == 6


def test_a_state_names_the_policy_and_the_encoder(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "where" / "missing"
    with keeper(folder) as kept:
        learn(kept, range(2))
    header = LearntState.load(folder).header
    assert (header.policy, header.model_fingerprint) == ("dimec-dc-adaptive", "m")
    assert header.policy_fingerprint == policy_fingerprint(adaptive())


def test_what_could_not_be_written_is_written_at_the_next_update(tmp_path: Path) -> None:
    kept = keeper(tmp_path, every=2)
    blocked = tmp_path / f"{FILE}.partial"
    blocked.mkdir()
    learn(kept, range(2))
    assert not (tmp_path / FILE).exists()
    blocked.rmdir()
    learn(kept, range(2, 3))
    assert LearntState.load(tmp_path).updates == 3
    kept.close()


def test_nothing_new_is_not_written_nor_anything_after_the_end(tmp_path: Path) -> None:
    kept = keeper(tmp_path, every=1)
    learn(kept, range(1))
    (tmp_path / FILE).unlink()
    kept.save()
    assert not (tmp_path / FILE).exists()
    kept.close()
    learn(kept, range(1, 2))
    assert not (tmp_path / FILE).exists()


def test_what_a_forked_process_learns_is_not_kept(tmp_path: Path) -> None:
    kept = keeper(tmp_path, every=1)
    learn(kept, range(1))
    kept.forked()
    learn(kept, range(1, 3))
    assert LearntState.load(tmp_path).updates == 1
