"""How much each row of a run counts where the texts to come differ from them: importance weights.

A logistic regression learns to tell a split's texts from texts to come, by their words and their length. Its odds for
rows that did not fit it (five folds) are the ratio of both densities, up to a constant. Weighed by these a mean over
the split is one over the texts to come, if the same text has the same label there (covariate shift: Shimodaira, 2000,
Journal of Statistical Planning and Inference 90; Bickel, Brückner and Scheffer, 2009, JMLR 10). A weight is at most
sqrt(n) times their mean, so that no row decides alone (Ionides, 2008, Journal of Computational and Graphical
Statistics 17).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from dimec.core.errors import OptionError
from dimec.core.metrics import auc, effective_size
from dimec.core.options import TextColumns
from dimec.core.progress import SILENT, Progress
from dimec.data.files import SUFFIXES
from dimec.data.likeness import SEPARATOR
from dimec.data.unlabelled import of_file
from dimec.runs.run import Run
from dimec.training.texts import RunTexts, SplitName

FEWEST = 100
"""The least effective rows, and texts to come: with fewer a single one is a point or more of the score."""

MOST = 20_000
"""How many of the texts to come are looked at."""

_STRENGTH = 0.1  # the inverse of the penalty: of 0.03 to 10 the one with the least log loss on SST-2's sentences
_FOLDS = 5


def weigh_like(
    run: Run,
    path: str | Path,
    *,
    split: SplitName = "validation",
    columns: TextColumns,
    progress: Progress = SILENT,
) -> NDArray[np.float64] | None:
    """Weigh a split's rows by how much they look like texts to come; None where these cannot be told from them.

    Args:
        path: The texts to come, a table or a text a line, without labels.
        split: Which rows of the run; only of validation too few effective rows are refused, and the size is told.
        columns: Where a table's texts are; by default where the run's own were.

    Returns:
        [rows], with a mean of 1.

    Raises:
        DataError: If the texts to come cannot be read.
        OptionError: If these, or the effective rows (sum w)^2 / sum w^2, are under `FEWEST`, or the run's own texts
            cannot be read any more.
    """
    own = RunTexts(run, progress=progress).of(split)
    texts = list(own.first)
    if own.second is not None:
        texts = [f"{one} {SEPARATOR} {two}" for one, two in zip(texts, own.second, strict=True)]
    others = _read(run, Path(path), columns, progress)
    odds, told_apart = _odds(texts, others)
    if told_apart < 0.5 + _chance(len(texts), len(others)):
        if split == "validation":
            progress.say(
                f"--like {path}: its texts cannot be told from the {split} texts (AUC {told_apart:.2f}), so that "
                "weights change nothing: all rows count alike"
            )
        return None
    limit = np.sqrt(len(odds)) * odds.mean()
    weights: NDArray[np.float64] = np.minimum(odds, limit)
    weights *= len(weights) / weights.sum()
    effective = effective_size(weights)
    if split != "validation":
        return weights
    if effective < FEWEST:
        raise OptionError(
            f"--like {path}: weighed by its texts, the {len(weights):,} {split} rows tell as much as {effective:.0f}, "
            f"and at least {FEWEST} are needed: fit with more rows like these texts, or leave it out"
        )
    progress.say(
        f"--like {path}: the {len(weights):,} {split} rows, weighed by how much they look like its texts (AUC "
        f"{told_apart:.2f}), tell as much as {effective:.0f} rows"
    )
    return weights


def _read(run: Run, path: Path, columns: TextColumns, progress: Progress) -> list[str]:
    """Read the texts to come, at most `MOST` of them, drawn; the two of a pair as one."""
    own = TextColumns(**{name: getattr(columns, name) for name in TextColumns.model_fields})
    if path.suffix.lower() not in SUFFIXES:
        own = TextColumns(skip_empty=columns.skip_empty)
    elif own == TextColumns():
        own = run.config.options
    pairs = run.config.task.pairs
    found = of_file(path, pairs=pairs, columns=own, skip_bad=True, progress=progress)
    texts = [
        each if isinstance(each, str) else f" {SEPARATOR} ".join(each) for _, each in found.read()
    ]
    if found.n_left_out:
        progress.warn(
            f"--like {path}: {found.n_left_out:,} rows were left out: {found.why_left_out}"
        )
    if len(texts) < FEWEST:
        raise OptionError(
            f"--like {path} has {len(texts):,} texts that can be read: give at least {FEWEST} of those to come"
        )
    if len(texts) > MOST:
        kept = np.sort(np.random.default_rng(0).permutation(len(texts))[:MOST])
        texts = [texts[place] for place in kept]
    return texts


def _odds(own: list[str], others: list[str]) -> tuple[NDArray[np.float64], float]:
    """Return the odds [own] that a text is one of the others, by fits without it, and how well these rank: the AUC."""
    vectors = CountVectorizer(analyzer=_features, binary=True, min_df=2)
    rows = vectors.fit_transform([*own, *others])
    is_other = np.repeat([False, True], [len(own), len(others)])
    ranking = cross_val_predict(
        LogisticRegression(C=_STRENGTH, max_iter=1000),
        rows,
        is_other,
        cv=StratifiedKFold(_FOLDS, shuffle=True, random_state=0),
        method="decision_function",
    )
    return np.exp(ranking[: len(own)]), auc(ranking, is_other) or 0.5


def _features(text: str) -> list[str]:
    """Return a text's words, case folded, and its length in words on a logarithmic scale as one more."""
    words = text.casefold().split()
    return [*words, f"{SEPARATOR}{round(3 * np.log2(1 + len(words)))}"]


def _chance(n_own: int, n_others: int) -> float:
    """Return how far above 0.5 an AUC may be by chance: two standard errors (Mann and Whitney, 1947)."""
    return 2 * float(np.sqrt((n_own + n_others + 1) / (12 * n_own * n_others)))
