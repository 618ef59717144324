"""Each class by itself: precision, recall and F1 of the full model beside those of what is recommended."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dimec.core.metrics import average_precision
from dimec.evaluation.results import ClassDetail, ClassDetails, ClassScores
from dimec.runs.exit_table import ExitTable

MOST_CLASSES = 100
"""Up to how many classes the confusion matrices are kept."""


def class_details(
    table: ExitTable,
    recommended: NDArray[np.int64] | None = None,
    *,
    confidence: NDArray[np.float64] | None = None,
) -> ClassDetails:
    """Compare the full model with the answers [n] of what is recommended, class by class.

    With two classes each is ranked too, by the full model's probability, and by the ``confidence`` [n] of the answers.
    """
    full = table.confusion(table.predictions[:, -1])
    own = None if recommended is None else table.confusion(recommended)

    def ranked(
        label: int, answers: NDArray[np.int64], sure: NDArray[np.float64] | None
    ) -> float | None:
        if table.n_classes != 2 or sure is None:
            return None
        return average_precision(np.where(answers == label, sure, 1 - sure), table.labels == label)

    cloud = table.predictions[:, -1], table.confidence[:, -1]
    keep = table.n_classes <= MOST_CLASSES
    return ClassDetails(
        rows=[
            ClassDetail(
                name=name,
                support=int(full[label].sum()),
                full_model=_scores(full, label, ranked(label, *cloud)),
                recommended=None
                if own is None or recommended is None
                else _scores(own, label, ranked(label, recommended, confidence)),
            )
            for label, name in enumerate(table.label_names)
        ],
        full_model_confusion=full.tolist() if keep else None,
        recommended_confusion=own.tolist() if keep and own is not None else None,
    )


def _scores(matrix: NDArray[np.int64], label: int, ranked: float | None) -> ClassScores:
    """Return the scores of one class, 0 where they would divide by zero."""
    hits, truth, answers = matrix[label, label], matrix[label].sum(), matrix[:, label].sum()
    return ClassScores(
        precision=float(hits / max(answers, 1)),
        recall=float(hits / max(truth, 1)),
        f1=float(2 * hits / max(truth + answers, 1)),
        average_precision=ranked,
    )
