"""From cases that agree with a claim to what became of it."""

from __future__ import annotations

from collections.abc import Iterable

from dimec.reporting.results import Ruling, Verdict
from dimec.studies.notes import notes_verdicts
from dimec.studies.published import claim


def verdict(
    claim_id: str, ruling: Ruling, evidence: Iterable[str], *, cases: Iterable[str] = ()
) -> Verdict:
    """Rule on a claim of the notes; what their own tables say of it comes first."""
    said = claim(claim_id)
    return Verdict(
        claim=said.text,
        source=said.source,
        ruling=ruling,
        evidence=(*notes_verdicts(claim_id), *evidence),
        cases=tuple(cases),
    )


def ruling_of(agreeing: int, *, of: int) -> Ruling:
    """Return the verdict on a claim that so many of the cases agree with."""
    if not of:
        return "could not be tested"
    if agreeing == of:
        return "holds"
    return "holds in part" if agreeing else "does not hold here"
