"""What a device has learnt: kept, refused, and killed at any moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dimec.core.errors import StateError
from dimec.policies import POLICIES, Calibration, Policy
from dimec.policies.centroids import Centroids
from dimec.policies.dimec_dc import DimecDcAdaptive
from dimec.runs.exit_table import TierTables
from dimec.runtime.device.state import FILE, Keeper, LearntState
from tests.servers import wait_for
from tests.unit.tables import DEPTHS, meet, random_table

TABLES = TierTables(random_table(400)).with_exit_zero


def adaptive(seed: int = 1) -> DimecDcAdaptive:
    rng = np.random.default_rng(seed)
    centroids = Centroids(rng.normal(size=(3, 8)) * 10, np.array([5, 3, 2]))
    return DimecDcAdaptive(DEPTHS["dc"], centroids, {"alpha": 0.6, "beta": 0.1})


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
