"""Classes that a user names, and what each of them weighs."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from dimec.core.errors import OptionError
from dimec.data.classes import class_weights, find_class

NAMES = ("ok", "fraud", "a, b")
LABELS = np.array([0] * 6 + [1] + [2] * 3)


def test_a_class_is_found_by_its_name_or_by_the_only_one_that_looks_like_it() -> None:
    assert find_class("fraud", NAMES, option="--positive") == 1
    assert find_class(" Fraud", NAMES, option="--positive") == 1
    assert find_class("OK", ("ok", "OK"), option="--positive") == 1
    for name, names in (("spam", NAMES), ("Ok", ("ok", "OK"))):
        with pytest.raises(OptionError, match="--positive"):
            find_class(name, names, option="--positive")


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    expected = compute_class_weight("balanced", classes=np.arange(3), y=LABELS)
    assert class_weights("balanced", LABELS, NAMES) == pytest.approx(expected)


def test_given_weights_keep_their_ratios_and_are_one_in_the_mean_over_rows() -> None:
    assert class_weights("none", LABELS, NAMES) is None
    found = class_weights('fraud=20,"a, b=2"', LABELS, NAMES)
    assert found is not None
    assert np.array(found) / found[0] == pytest.approx([1, 20, 2])
    assert np.array(found)[LABELS].mean() == pytest.approx(1)


@pytest.mark.parametrize("told", ["", "fraud", "fraud=0", "fraud=x", "fraud=nan", "spam=2", "=2"])
def test_what_is_no_weight_is_refused(told: str) -> None:
    with pytest.raises(OptionError, match="--class-weight"):
        class_weights(told, LABELS, NAMES)
