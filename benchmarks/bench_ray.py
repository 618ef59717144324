"""One pool of workers against a pool for each tier: seconds over the bound that perfectly balanced workers give.

    python benchmarks/bench_ray.py [--blocks 96] [--workers 6]

The tiers' work is slept, so that the figures are those of the scheduling and any machine can have any number of
workers: a block takes 0.05 s of words and device, 0.1 s at the edge and 0.45 s in the cloud. `one pool` takes a block
through all tiers, as `dimec bulk` does. `a pool for each tier` divides the workers by the tiers' work; `Ray's sizing`
leaves their number to Ray Data. Time counts from the first block that is done to the last: actors start before that.
"""

from __future__ import annotations

import argparse
import logging
import os
import time
import warnings
from typing import Any

SECONDS = {"mobile": 0.05, "edge": 0.1, "cloud": 0.45}
CPUS = 0.3


class Tiers:
    """Sleeps as long as some tiers take."""

    def __init__(self, *tiers: str) -> None:
        self._seconds = sum(SECONDS[tier] for tier in tiers)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        time.sleep(self._seconds * len(batch["id"]))
        return batch


def seconds(blocks: int, workers: int, pools: list[tuple[list[str], int | None]]) -> float:
    """Return how long the blocks take after the first is done."""
    import ray
    from ray.data import ActorPoolStrategy

    data = ray.data.range(blocks, override_num_blocks=blocks)
    for tiers, size in pools:
        compute = ActorPoolStrategy(min_size=1, max_size=workers)
        if size is not None:
            compute = ActorPoolStrategy(size=size)
        data = data.map_batches(
            Tiers, batch_size=1, fn_constructor_args=tuple(tiers), compute=compute, num_cpus=CPUS
        )
    first = 0.0
    for number, _ in enumerate(data.iter_rows()):
        if number == 0:
            first = time.perf_counter()
    return time.perf_counter() - first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--blocks", type=int, default=96)
    parser.add_argument("--workers", type=int, default=6)
    given = parser.parse_args()
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    warnings.simplefilter("ignore", DeprecationWarning)
    import ray

    total = sum(SECONDS.values())
    ray.init(
        num_cpus=2 + round(CPUS * given.workers),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=10**8,
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    shares = [max(1, round(given.workers * each / total)) for each in SECONDS.values()]
    shares[-1] = given.workers - sum(shares[:-1])
    ways: dict[str, list[tuple[list[str], int | None]]] = {
        "one pool": [(list(SECONDS), given.workers)],
        f"a pool for each tier, {shares}": [
            ([tier], size) for tier, size in zip(SECONDS, shares, strict=True)
        ],
        "Ray's sizing, a pool for each tier": [([tier], None) for tier in SECONDS],
    }
    bound = (given.blocks - given.workers) * total / given.workers
    print(f"{given.blocks} blocks, {given.workers} workers, bound {bound:.1f} s", flush=True)
    for name, pools in ways.items():
        taken = seconds(given.blocks, given.workers, pools)
        print(f"  {name}: {taken:.1f} s, {bound / taken:.2f} of the bound's rate", flush=True)


if __name__ == "__main__":
    main()
