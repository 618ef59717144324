"""The columns of a policy's row held against chance, as the studies of one run at a time print it."""

from __future__ import annotations

from dimec.studies.measures import (
    AT_COST,
    AT_SHARES,
    AUC,
    CHANGE,
    COST,
    GAP,
    SCORE,
    SHARES,
    N,
    name_of_policy,
)

POLICY = name_of_policy()
ONE_SCORE = SCORE.model_copy(update={"spread": None})
CONTROLS = (AT_SHARES, AT_COST, GAP, AUC)
SPENT = (COST.model_copy(update={"spread": None}), CHANGE, *SHARES)
SCORE_COLUMNS = (POLICY, ONE_SCORE, *SPENT, *CONTROLS, N)
