"""What benchmarks share: a bundle, texts, and a server of a tier.

`DIMEC_BUNDLE` names the bundle; without it a small one is fitted to the built-in reviews, once per call, which takes a
minute or two (speed does not depend on what the weights have learnt). Texts are SST-2's training rows in a random order
where `DIMEC_DATA` names the data sets, else reviews, whose lengths vary less; pairs are those of the
bundle's own task.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

import dimec
from dimec.bundle import Bundle, load_bundle
from dimec.data import load_dataset, reviews
from dimec.data.likeness import tie_to_holders
from dimec.runs.run import Run
from dimec.training.texts import split_texts


@contextmanager
def some_bundle() -> Iterator[Bundle]:
    """Give the bundle to measure."""
    folder = os.environ.get("DIMEC_BUNDLE")
    if folder:
        yield load_bundle(folder)
        return
    print("DIMEC_BUNDLE names no bundle: one is fitted to the built-in reviews")
    with TemporaryDirectory() as scratch:
        run = dimec.fit("reviews", out=f"{scratch}/run", epochs=1, max_rows=600, split="random")
        dimec.export(run, out=f"{scratch}/bundle")
        yield load_bundle(Path(scratch) / "bundle")


def some_texts(count: int) -> tuple[list[str], str]:
    """Give texts, and where they are from."""
    root = os.environ.get("DIMEC_DATA")
    if root:
        texts = load_dataset("sst2", data=Path(root) / "glue" / "sst2").first
        source = "SST-2"
    else:
        texts = reviews(4 * count, seed=1).first
        source = "the built-in reviews"
    order = np.random.default_rng(0).permutation(len(texts))[:count]
    return [texts[row] for row in order], source


def some_pairs(count: int, task: str) -> tuple[list[tuple[str, str]], str]:
    """Give pairs of texts of a task, and where they are from."""
    rows = load_dataset(task, data=Path(os.environ["DIMEC_DATA"]) / "glue" / task)
    assert rows.second is not None
    order = np.random.default_rng(0).permutation(len(rows.first))[:count]
    return [(rows.first[row], rows.second[row]) for row in order], task.upper()


_ABOUT = {
    "billing": ("the invoice of {when} is {off}", "I was charged twice for {what}"),
    "refunds": ("a refund for {what} is still missing", "when do I get back what {what} cost"),
    "access": ("I cannot sign in to {what} since {when}", "the password of {what} is refused"),
    "faults": ("{what} stops with an error since {when}", "{what} shows {off} figures"),
    "orders": ("how do I order {what} again", "I want to buy {what} for ten people"),
    "delivery": ("the delivery of {what} is late since {when}", "{what} arrived {off}"),
    "contracts": ("we want to end the contract of {what}", "who signs the contract of {what}"),
    "licences": ("the licence of {what} ran out {when}", "{what} says that no licence is left"),
    "data": ("the export of {what} is {off}", "rows of {what} are missing since {when}"),
    "privacy": ("please delete what {what} knows of me", "who can read what is in {what}"),
    "speed": ("{what} takes minutes to open since {when}", "{what} is slow on Mondays"),
    "praise": ("{what} works well since {when}", "thank you for {what}, it helps us"),
}
_PARTS = {
    "when": ("Monday", "the last update", "the first of the month", "we moved to the new plan"),
    "what": (
        "the mobile app",
        "our team's account",
        "the report on sales",
        "a second licence",
        "the printer",
    ),
    "off": ("wrong", "incomplete", "not what we agreed on", "twice what it was"),
}
_AROUND = (
    "Hello,", "Good morning,", "Please help as soon as you can.", "We have tried it on two machines.",
    "Nobody in the office can work on {what}.", "I have written about this before, {when} if I remember well.",
    "Many thanks and kind regards", "It did not happen with {what}, by the way.",
)  # fmt: skip


def tickets(count: int, *, seed: int, wrong: float = 0.0) -> tuple[list[str], list[str]]:
    """Give generated tickets of one to five sentences, some of them about two things, and their queues, some wrong."""
    draw = np.random.default_rng(seed)
    texts, queues = [], []
    for _ in range(count):
        queue, other = draw.permutation(list(_ABOUT))[:2].tolist()
        said = [str(draw.choice(_ABOUT[queue]))]
        if draw.random() < 0.3:  # what comes first counts
            said.append(f"also {draw.choice(_ABOUT[other])}")
        around = draw.permutation(_AROUND)[: draw.integers(0, 5)].tolist()
        half = len(around) // 2
        parts = {name: str(draw.choice(values)) for name, values in _PARTS.items()}
        texts.append(
            " ".join([*around[:half], *(f"{each}." for each in said), *around[half:]]).format(
                **parts
            )
        )
        queues.append(other if draw.random() < wrong else queue)
    return texts, queues


@contextmanager
def tier_server(
    tier: str, folder: Path, options: Sequence[str] = (), *, token: str = ""
) -> Iterator[tuple[int, int]]:
    """Start a server of a bundle's tier and give its port and process id."""
    command = [sys.executable, "-c", "from dimec.cli import main; main()"]
    command += ["serve", tier, str(folder), "--port", "0", *options]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, **({"DIMEC_TOKEN": token} if token else {})},
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise SystemExit("dimec serve did not start")
        try:
            ready = json.loads(line)
            yield ready["port"], ready["pid"]
        finally:
            process.terminate()


def whole_rows(run: Run) -> NDArray[np.bool_]:
    """Say which held-out rows, validation's and then test's, are part of no other row of the whole data."""
    parts = [split_texts(run, name) for name in ("train", "validation", "test")]
    texts = [tuple(text.casefold().split()) for part in parts for text in part.first]
    numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    holders = tie_to_holders(list(numbers))
    alone = holders == np.arange(len(holders))
    found: NDArray[np.bool_] = alone[[numbers[text] for text in texts]][len(parts[0]) :]
    return found
