"""The table of classes on the command line: how wide it is, and when it is printed."""

from __future__ import annotations

import numpy as np
import pytest

from dimec.cli.console import out
from dimec.cli.evaluate import print_classes
from dimec.evaluation.classes import class_details
from tests.unit.tables import random_table


def printed(n_classes: int, *, everything: bool, recommended: bool = True) -> list[str]:
    table = random_table(400, n_classes=n_classes)
    names = tuple(f"{each} of a name that is far too long" for each in range(n_classes))
    object.__setattr__(table, "label_names", names)
    answers = np.zeros(400, dtype=np.int64) if recommended else None
    with out.capture() as captured:
        print_classes(class_details(table, answers), everything=everything)
    return captured.get().splitlines()


@pytest.mark.parametrize("recommended", [True, False])
def test_twenty_classes_fit_eighty_columns(recommended: bool) -> None:
    lines = printed(20, everything=False, recommended=recommended)
    assert max(map(len, lines)) <= 80
    assert sum("of a name" in line for line in lines) == 20


def test_how_two_classes_are_ranked_is_printed() -> None:
    assert (
        sum("average precision of 0 of a name" in line for line in printed(2, everything=False))
        == 1
    )
    assert not any("average precision" in line for line in printed(3, everything=False))


def test_more_classes_and_the_confusion_matrices_are_printed_where_all_is_wanted() -> None:
    assert printed(21, everything=False) == []
    assert sum("of a name" in line for line in printed(21, everything=True)) == 21
    lines = printed(12, everything=True)
    assert sum("of a name" in line for line in lines) == 3 * 12
