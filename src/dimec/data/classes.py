"""Classes that a user names in an option, and what each of them weighs."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from dimec.core.errors import OptionError, shown
from dimec.data.dataset import listed
from dimec.data.folding import folded, spelled_out


def find_class(name: str, label_names: Sequence[str], *, option: str) -> int:
    """Return the code of the class of that name, or of the only one that looks like it.

    Raises:
        OptionError: If there is none, or several look like it; names the ``option``.
    """
    if name in label_names:
        return list(label_names).index(name)
    alike = [code for code, each in enumerate(label_names) if folded(each) == folded(name)]
    if len(alike) == 1:
        return alike[0]
    raise OptionError(
        f"{option} {shown(name)} is {'more than one' if alike else 'no'} class: give one of "
        f"{listed(list(map(spelled_out, label_names)))}"
    )


def class_weights(
    told: str, labels: NDArray[np.integer], label_names: Sequence[str]
) -> tuple[float, ...] | None:
    """Return what a row of each class weighs in training, 1 in the mean over the rows; None where all are equal.

    Args:
        told: none; balanced, which gives every class the same weight in all; or the weights of some classes,
            NAME=W,…, where the others weigh 1. A part with a comma in its name stands in double quotes.
        labels: [n], the classes of the training rows.

    Raises:
        OptionError: If it is none of these, a weight is no number above 0, or a class is unknown.
    """
    if told == "none":
        return None
    counts = np.bincount(labels, minlength=len(label_names))
    if told == "balanced":
        weights = 1 / np.maximum(counts, 1)
    else:
        weights = np.ones(len(label_names))
        for part in next(csv.reader([told], skipinitialspace=True), []) or [told]:
            code, weight = _read_weight(part, label_names)
            weights[code] = weight
    scaled: list[float] = (weights * counts.sum() / (weights * counts).sum()).tolist()
    return tuple(scaled)


def _read_weight(part: str, label_names: Sequence[str]) -> tuple[int, float]:
    name, equals, number = part.rpartition("=")
    if equals:
        code = find_class(name.strip(), label_names, option="--class-weight")
        with suppress(ValueError):
            if 0 < (weight := float(number)) < math.inf:
                return code, weight
    raise OptionError(
        f"--class-weight {shown(part)}: give none, balanced, or NAME=W with a number above 0 for one or more classes, "
        "with commas between them, such as fraud=20,ok=1"
    )
