"""Warnings where a model is no better on validation than answers that need none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dimec.core.metrics import f1_of
from dimec.runs.baselines import warnings_of
from dimec.runs.exit_table import ExitTable
from dimec.runs.run import FitOptions
from tests.unit.tables import random_table, table_of

RARE = [1] * 10 + [0] * 190


def rare(found: int, *, wrong: int = 0) -> ExitTable:
    """A task of 190 rows to 10, a model that finds some of the ten and takes some others for them."""
    says = np.zeros(200)
    says[:found] = 1
    says[10 : 10 + wrong] = 1
    return table_of([[each, each] for each in says.tolist()], labels=RARE)


def warned(table: ExitTable, metric: str = "accuracy", **options: str) -> list[str]:
    return warnings_of(table, metric=metric, options=FitOptions(task="fraud", **options))


def test_a_model_that_never_says_the_rare_class_is_warned_of_with_a_remedy() -> None:
    (told,) = warned(rare(0))
    assert "0 of the 10 rows" in told
    for remedy in ("--class-weight balanced", "--metric macro-f1", "--positive"):
        assert remedy in told


def test_rows_of_an_unknown_fit_are_warned_of_too() -> None:
    (told,) = warnings_of(rare(0), metric="accuracy", rows="these texts")
    assert "these texts" in told and "--class-weight balanced" in told


def test_a_remedy_in_use_is_not_named() -> None:
    (told,) = warned(rare(0), "macro-f1")
    assert "--class-weight balanced" in told and "--metric" not in told
    (told,) = warned(rare(0), "macro-f1", class_weight="balanced")
    assert "--class-weight" not in told and "--epochs" in told


@pytest.mark.parametrize("metric", ["accuracy", "macro-f1", f1_of(1), "matthews"])
def test_a_model_that_finds_the_rare_class_is_not_warned_of(metric: str) -> None:
    assert warned(rare(9), metric) == []


def test_accuracy_hides_what_a_careful_model_finds() -> None:
    table = rare(8, wrong=7)
    (told,) = warned(table)
    assert "8 of the 10 rows" in told and "--metric macro-f1" in told
    assert warned(table, "macro-f1") == []


def test_words_that_beat_the_full_model_are_warned_of() -> None:
    table = random_table(400)
    assert warned(table) == []
    words = np.eye(2)[table.labels].astype(np.float32)
    noise = np.random.default_rng(0).random(400) < 0.3
    worse = np.where(noise[:, None], 1 - words, words).astype(np.float32)
    logits = np.repeat(worse[:, None], len(table.layers), axis=1)
    (told,) = warned(replace(table, logits=logits, exit_zero=words))
    assert "--epochs" in told
    assert warned(replace(table, logits=logits, exit_zero=worse)) == []
