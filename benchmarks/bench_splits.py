"""How many test rows of SST-2 are part of a training row, under either split, and the time it takes to split.

DIMEC_DATA=... python benchmarks/bench_splits.py
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np

from dimec.data import SPLIT_KINDS, load_dataset, split_dataset


def main() -> None:
    root = os.environ.get("DIMEC_DATA")
    if not root:
        print("skipped: set DIMEC_DATA to a folder with the real data sets to run this benchmark")
        return
    dataset = load_dataset("sst2", data=Path(root) / "glue" / "sst2")
    texts = [f" {' '.join(text.casefold().split())} " for text in dataset.first]
    for kind in SPLIT_KINDS:
        began = time.perf_counter()
        split = split_dataset(dataset, kind=kind)
        seconds = time.perf_counter() - began
        trained = "|".join(texts[row] for row in split.train)
        contained = np.mean([texts[row] in trained for row in split.test])
        sizes = f"{len(split.train):,} / {len(split.validation):,} / {len(split.test):,}"
        print(f"{kind:8} {sizes}, {seconds:.2f} s; {contained:.1%} of test rows in a training row")


if __name__ == "__main__":
    main()
