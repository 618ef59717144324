"""The papers' notes as data: their tables, settings and claims, each with its place.

`published.json` holds figures and facts only; the claims are in our own words, close to the notes'. What their own
tables say about a claim is computed in `dimec.studies.notes`.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Literal

from dimec.core.tiers import Depths
from dimec.core.untrusted import Record

Paper = Literal[1, 2]
REFERENCE = "bert-on-mobile"  # the full model on the device: what costs and drops are held against
Backbone = Literal["bert-base", "bert-large"]


class PublishedRow(Record):
    """One system on one task, as printed.

    Attributes:
        paper: 1 is data cartography, 2 early exits.
        policy: Our name of it.
        score: What the column "Acc" prints, as a fraction: 0.935 for 93.5.
        cost_change: Cost against the full model on the device, as a fraction: -0.55 for -55 %.
        doubt: Why the figure does not fit the notes' own words or costs; None where nothing speaks against it.
    """

    paper: Paper
    section: str
    backbone: Backbone
    task: str
    system: str
    policy: str
    score: float
    cost_change: float
    doubt: str | None = None

    @property
    def ours(self) -> bool:
        """Whether it is the paper's own method, with fixed or adaptive centroids."""
        return self.system in ("Ours-F", "Ours-D")

    def beside(
        self, policy: str, *, paper: int | None = None, backbone: str | None = None
    ) -> PublishedRow:
        """Return the row of another system, or of the same one in another table, on this task."""
        found = published_row(
            paper=paper or self.paper,
            backbone=backbone or self.backbone,
            task=self.task,
            policy=policy,
        )
        assert found is not None  # the tables are complete, which a test holds
        return found


class PublishedShares(Record):
    """Which share of a task's samples each pool holds."""

    paper: Paper
    section: str
    backbone: Backbone
    task: str
    easy: float
    medium: float
    hard: float


class PublishedDepths(Record):
    """The tiers' last layers: m, n and l."""

    paper: Paper
    backbone: Backbone
    mobile: int
    edge: int
    cloud: int


class Claim(Record):
    """What the papers claim, in our words."""

    id: str
    text: str
    source: str


class Published(Record):
    """Everything of the notes.

    Attributes:
        alphas: Paper 1's grid, as betas.
        exit_alphas: How many equidistant alphas paper 2 tries, from 1/classes to 1.
    """

    rows: tuple[PublishedRow, ...]
    pool_shares: tuple[PublishedShares, ...]
    depths: tuple[PublishedDepths, ...]
    alphas: tuple[float, ...]
    betas: tuple[float, ...]
    exit_alphas: int
    claims: tuple[Claim, ...]


@cache
def notes() -> Published:
    """Return everything of the notes."""
    text = files("dimec.studies").joinpath("published.json").read_text(encoding="utf-8")
    return Published.model_validate_json(text)


def published(
    *,
    paper: int | None = None,
    backbone: str | None = None,
    task: str | None = None,
    system: str | None = None,
) -> tuple[PublishedRow, ...]:
    """Return the printed rows of a paper, a backbone, a task or a system; all where none is given."""
    return tuple(
        row
        for row in notes().rows
        if paper in (None, row.paper)
        and backbone in (None, row.backbone)
        and task in (None, row.task)
        and system in (None, row.system)
    )


def published_row(
    *, backbone: str, task: str, policy: str, paper: int | None = None
) -> PublishedRow | None:
    """Return one printed row by our name of its system, the first paper's of both; None where there is none."""
    rows = published(paper=paper, backbone=backbone, task=task)
    return next((row for row in rows if row.policy == policy), None)


def published_depths(*, paper: int, backbone: str) -> Depths:
    """Return where a paper cuts a backbone."""
    found = [each for each in notes().depths if (each.paper, each.backbone) == (paper, backbone)]
    return Depths(found[0].mobile, found[0].edge, found[0].cloud)


def claim(claim_id: str) -> Claim:
    """Return one claim."""
    return next(each for each in notes().claims if each.id == claim_id)
