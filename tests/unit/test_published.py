"""The notes' figures as data, held against figures typed by hand, and what they say about the notes' own claims."""

from __future__ import annotations

import pytest

from dimec.core.tiers import method_depths
from dimec.policies import POLICIES
from dimec.policies.thresholds import ALPHAS, BETAS, N_EXIT_ALPHAS
from dimec.studies.base import catalogue
from dimec.studies.notes import (
    cost_statements,
    notes_verdicts,
    random_cost_change,
    shares_cost_change,
)
from dimec.studies.published import notes, published, published_depths, published_row


@pytest.mark.parametrize(
    ("paper", "backbone", "task", "policy", "score", "cost_change"),
    [
        (1, "bert-base", "sst2", "bert-on-mobile", 0.935, 0.0),
        (1, "bert-base", "sst2", "dimec-dc-fixed", 0.930, -0.55),
        (1, "bert-base", "qqp", "dimec-dc-adaptive", 0.722, -0.43),
        (1, "bert-base", "mrpc", "i-splitee", 0.885, -0.58),
        (1, "bert-large", "cola", "dimec-dc-adaptive", 0.589, -0.71),
        (1, "bert-large", "qnli", "deebert", 0.912, -0.55),
        (2, "bert-base", "mnli", "dimee-fixed", 0.839, -0.53),
        (2, "bert-base", "qnli", "dimee-fixed", 0.821, -0.58),
        (2, "bert-base", "cola", "random", 0.557, -0.31),
        (2, "bert-large", "mrpc", "dimee-adaptive", 0.902, -0.67),
        (2, "bert-large", "cola", "early-exit", 0.562, -0.32),
        (2, "bert-large", "qnli", "adaee", 0.917, -0.62),
    ],
)
def test_figures_are_those_of_the_notes(
    paper: int, backbone: str, task: str, policy: str, score: float, cost_change: float
) -> None:
    row = published_row(paper=paper, backbone=backbone, task=task, policy=policy)
    assert row is not None
    assert (row.score, row.cost_change) == (score, cost_change)


def test_tables_are_whole() -> None:
    assert len(published()) == 2 * 7 * (6 + 3)
    for paper in (1, 2):
        assert len(published(paper=paper, backbone="bert-base")) == 42
        assert len({row.policy for row in published(paper=paper)}) == 7
    assert {row.policy for row in published()} <= {*POLICIES, "bert-on-mobile"}
    assert {row.task for row in published()} <= set(catalogue()["main"]["tasks"])
    assert all(0.5 < row.score < 1 and -1 < row.cost_change <= 0 for row in published())


def test_the_settings_are_those_that_policies_and_depths_run_at() -> None:
    said = notes()
    assert (said.alphas, said.betas, said.exit_alphas) == (ALPHAS, BETAS, N_EXIT_ALPHAS)
    for backbone, layers in (("bert-base", 12), ("bert-large", 24)):
        assert published_depths(paper=1, backbone=backbone) == method_depths("dc", layers)
        assert published_depths(paper=2, backbone=backbone) == method_depths("ee", layers)


def test_every_claim_has_a_place_and_what_the_notes_show_for_it() -> None:
    assert len({each.id for each in notes().claims}) == len(notes().claims) == 19
    for each in notes().claims:
        assert each.source.startswith("paper ")
        assert all(sentence.endswith(".") for sentence in notes_verdicts(each.id))
        assert notes_verdicts(each.id)


def test_more_than_43_percent() -> None:
    first, large = notes_verdicts("cost-paper-1")
    assert "4 of 12 printed rows" in first
    assert "QQP Ours-F (-36 %, -1.0 points)" in first
    assert "CoLA Ours-F (-45 %, -1.0 points)" in first
    assert "SST-2 Ours-D" not in first and "2 of 6" in large
    assert "QNLI Ours-F (-58 %, -10.4 points)" in notes_verdicts("cost-paper-2")[0]


def test_adaptive_and_baselines_as_printed() -> None:
    dc, ee, odd = notes_verdicts("adaptive-beats-fixed")
    assert "of 9 pairs the adaptive kind scores higher in 9 and costs less in 7" in dc
    assert "MRPC on BERT-large (-63 % fixed, -58 % adaptive)" in dc
    assert "costs less in 8" in ee and "82.1" in odd
    baselines = " ".join(notes_verdicts("outperforms-baselines"))
    assert "I-SplitEE scores 88.5 against 88.4" in baselines
    assert "MRPC: Random costs -59 % against -58 %" in baselines
    assert "3 of 36" in notes_verdicts("better-than-full")[0]
    assert "MRPC -62 % to -58 %" in notes_verdicts("larger-savings-large")[1]


def test_costs_that_the_printed_prices_do_not_give() -> None:
    uniform = {paper: random_cost_change(paper=paper, backbone="bert-base") for paper in (1, 2)}
    assert uniform[1] == pytest.approx((6 + 8.5 + 15) / 3 / 18 - 1)  # -45 %
    assert uniform[2] == pytest.approx((4.5 + 8.5 + 15) / 3 / 18 - 1)
    assert shares_cost_change() == pytest.approx(-0.5534, abs=1e-4)
    said = " ".join(cost_statements())
    assert "-45.4 % on every task; printed are -27 % to -49 %" in said
    assert (
        "QNLI: Ours-D is printed with -75 %, where everything on the mobile tier costs -75 %"
        in said
    )
    assert "9 of 9 columns" in said


def test_figures_that_the_notes_contradict_are_marked() -> None:
    typing_errors = [row for row in published() if row.doubt and "typing error" in row.doubt]
    assert [(row.paper, row.task, row.system) for row in typing_errors] == [(2, "qnli", "Ours-F")]
    assert all(row.doubt for row in published() if row.system in ("Random", "Early-Exit"))
    assert not any(row.doubt for row in published() if row.policy == "bert-on-mobile")
