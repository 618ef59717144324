"""A made-up study with every kind of figure, sections, verdicts and two tasks at other prices."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

from dimec.reporting.results import (
    Choice,
    Column,
    Figure,
    Result,
    Rows,
    Table,
    Tunable,
    Use,
    UsedRun,
    Verdict,
    WhatIf,
    read_result,
    read_rows,
    write_result,
)

EVIL = '</script><script>document.title="broken"</script> "quoted" & \'single\' \u2028 <!-- 🙂 {{ 7 }} \x08\x7f\ufffe'
TASKS = ("sst2", "cola")
POLICIES = ("dimee-fixed", "dimee-adaptive", "dimec-dc-fixed", "deebert", "adaee", "splitee")
CONTROLS = ("majority", "exit-zero", "all-mobile", "all-edge", "all-cloud")


def write_study(folder: Path, *, points: int = 400) -> tuple[WhatIf, ...]:
    """Write the study, and return what its panel computes from."""
    draw = random.Random(7)
    rows = {
        "main": _main(draw),
        "frontier": _frontier(draw),
        "grid": _grid(),
        "map": _map(draw, points),
        "shares": _shares(draw),
        "empty": [],
    }
    whatif = tuple(_whatif(draw, task) for task in TASKS)
    write_result(folder, _result(), rows, whatif=whatif)
    return whatif


def _main(draw: random.Random) -> Rows:
    found: list[dict[str, Any]] = []
    for task in TASKS:
        for place, policy in enumerate((*POLICIES, *CONTROLS)):
            score = 0.78 + 0.015 * place + draw.uniform(-0.01, 0.01)
            cost = None if policy == "exit-zero" else 2.5 + 1.3 * place
            found.append(
                {
                    "task": task,
                    "policy": policy,
                    "score": score,
                    "low": score - 0.018,
                    "high": score + 0.017,
                    "sd": 0.0021,
                    "best": place == 5,
                    "drop": score - 0.9,
                    "drop_low": score - 0.915,
                    "drop_high": score - 0.885,
                    "cost": cost,
                    "change": None if cost is None else cost / 18 - 1,
                    "mobile": 1 - place / 11,
                    "n": 87_200 - place,
                }
            )
    return found


def _frontier(draw: random.Random) -> Rows:
    return [
        {
            "task": task,
            "policy": policy,
            "price": price,
            "cost": 4 + 11 / (1 + 12 * price) + place * 0.3,
            "accuracy": 0.93 - 0.05 * price - place * 0.004 + draw.uniform(-0.001, 0.001),
            "low": 0.92 - 0.05 * price - place * 0.004,
            "high": 0.94 - 0.05 * price - place * 0.004,
            "chosen": price == 0.1,
        }
        for task in TASKS
        for place, policy in enumerate(POLICIES)
        for price in (0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8)
    ]


def _grid() -> Rows:
    return [
        {"α": alpha, "β": beta, "reward": 0.8 - (alpha - 0.7) ** 2 - (beta - 0.1) ** 2,
         "chosen": (alpha, beta) == (0.7, 0.11)}
        for alpha in (0.55, 0.6, 0.65, 0.7, 0.8)
        for beta in (0.05, 0.08, 0.11, 0.14, 0.17)
    ]  # fmt: skip


def _map(draw: random.Random, points: int) -> Rows:
    found = []
    for place in range(points):
        mean = draw.betavariate(3, 1)
        deviation = max(0.0, math.sqrt(mean * (1 - mean)) * draw.uniform(0.3, 0.9))
        pool = "hard" if mean < 0.6 else "easy" if deviation < 0.11 else "medium"
        text = EVIL if place == 0 else f"sample {place}: a film that keeps its promise, mostly"
        found.append({"deviation": deviation, "mean": mean, "pool": pool, "text": text})
    found[0] |= {"deviation": 0.02, "mean": 0.3}  # where a pointer finds it alone
    found[-1]["mean"] = None
    return found


def _shares(draw: random.Random) -> Rows:
    found = []
    for policy in POLICIES:
        mobile = draw.uniform(0.3, 0.7)
        edge = draw.uniform(0.1, 0.3)
        for tier, share in (("mobile", mobile), ("edge", edge), ("cloud", 1 - mobile - edge)):
            found.append(
                {"policy": policy, "tier": tier, "share": share, "accuracy": 0.8 + share / 8}
            )
    return found


def _whatif(draw: random.Random, task: str) -> WhatIf:
    layers = 12
    rows = []
    for place, policy in enumerate(POLICIES):
        two = policy == "dimec-dc-fixed"
        choices = []
        for step in range(10):
            far = step / 9
            mobile, edge, cloud = 3.2 - 1.5 * far, 0.5 + 2 * far, 11 * far * far + place * 0.2
            use = Use(mobile_layers=mobile, edge_layers=edge, cloud_layers=cloud,
                      to_edge=0.3 * far, to_cloud=0.9 * far)  # fmt: skip
            seen = use.model_copy(update={"cloud_layers": cloud * draw.uniform(0.9, 1.1)})
            shares = ((1 - far) * 0.9 + 0.05, (1 - far) * 0.05 + 0.02, 0.0)
            at = {"α": 0.5 + far / 2} | ({"β": 0.05 + 0.03 * (step % 5)} if two else {})
            accuracy = 0.80 + 0.12 * math.sqrt(far) - place * 0.003 + draw.uniform(-0.004, 0.004)
            choices.append(
                Choice(
                    at=at,
                    validation_confidence=0.85 + 0.13 * math.sqrt(far),
                    validation_use=seen,
                    use=use,
                    shares=(shares[0], shares[1], 1 - shares[0] - shares[1]),
                    score=accuracy - (0.3 if task == "cola" else 0),
                    accuracy=accuracy,
                )
            )
        # A twin that costs the same, and must lose to the first.
        choices.append(choices[4].model_copy(update={"accuracy": 0.1, "score": 0.1}))
        # As sure as the dearest and a little cheaper: taken for it where only that decides.
        less = choices[9].validation_use.model_copy(update={"to_edge": 0.0})
        at = {name: value + 0.01 for name, value in choices[9].at.items()}
        choices.append(choices[9].model_copy(update={"validation_use": less, "at": at}))
        rows.append(Tunable(name=policy, kind="policy", choices=tuple(choices)))
    single = {
        "majority": (Use(), (1, 0, 0), 0.51),
        "exit-zero": (Use(exit_zero=1), (1, 0, 0), 0.78),
        "all-mobile": (Use(mobile_layers=4), (1, 0, 0), 0.81),
        "all-edge": (Use(edge_layers=6, to_edge=1), (0, 1, 0), 0.88),
        "all-cloud": (Use(cloud_layers=12, to_cloud=1), (0, 0, 1), 0.925),
    }
    for name, (use, shares_of, accuracy) in single.items():
        choice = Choice(at={}, validation_confidence=0.9, validation_use=use, use=use,
                        shares=shares_of, score=accuracy, accuracy=accuracy)  # fmt: skip
        rows.append(Tunable(name=name, kind="control", choices=(choice,)))
    prices = Use(mobile_layers=1.5, edge_layers=1, cloud_layers=1, to_edge=2.5, to_cloud=3)
    metric = "accuracy" if task == "sst2" else "matthews"
    return WhatIf(task=task, n=872, metric=metric, n_layers=layers, price=0.1, prices=prices,
                  rows=tuple(rows))  # fmt: skip


def _result() -> Result:
    return Result(
        study="made-up",
        title="How much stays on the phone?",
        about="Routing, early-exit and split-computing rules on one honest cost model, over two of GLUE's tasks. "
        "Every figure in here is made up.",
        command="dimec study main-table --runs runs/sst2 --runs runs/cola --out studies/main --seed 0 --price 0.1",
        settings={"price": 0.1, "seed": 0, "bootstrap": 1000, "quick": False, "note": EVIL},
        runs=tuple(
            UsedRun(task=task, seed=seed, folder=f"runs/{task}-{seed}", source="builtin", n_validation=6734,
                    n_test=872, metric="accuracy", backbone="minilm", n_layers=6, pooling="mean",
                    split="80/10/10", seconds=None if seed else 812.4, code_revision="689db55")
            for task in TASKS for seed in (0, 1, 2)
        ),
        verdicts=(
            Verdict(claim="Costs fall by more than 43 % on every task.", source="paper 1, abstract",
                    ruling="holds in part",
                    evidence=("On sst2 by 55 %, on cola by 38 %.", f"A text from outside: {EVIL}")),
            Verdict(claim="Accuracy falls by less than 0.5 points.", source="paper 1, table 2",
                    ruling="holds", evidence=("The drop is 0.21 points (0.02–0.40).",)),
            Verdict(claim="The adaptive rule beats the fixed one.", source="paper 2, table 4",
                    ruling="does not hold here", evidence=("Equal within the interval on both tasks.",)),
            Verdict(claim="BERT-large behaves alike.", source="paper 2, table 5",
                    ruling="could not be tested", evidence=("There is no run of it.",)),
        ),
        tables=(
            Table(
                name="main", title="Policies and controls", group="task", source="paper 1, table 2",
                about="Score on the test rows with its 95 % bootstrap interval; cost in λ.",
                columns=(
                    Column(name="policy", title="Policy", quantity="text"),
                    Column(name="score", title="Score", quantity="score", low="low", high="high",
                           spread="sd", stands_out="best", about="GLUE's own metric of the task."),
                    Column(name="drop", title="Against all-cloud", quantity="points",
                           low="drop_low", high="drop_high", about="In points."),
                    Column(name="cost", title="Cost (λ)", quantity="cost"),
                    Column(name="change", title="Against BERT on mobile", quantity="change"),
                    Column(name="mobile", title="Answered on mobile", quantity="share"),
                    Column(name="n", title="Rows", quantity="count"),
                ),
            ),
            Table(name="frontier", title="Frontier"),
            Table(name="grid", title="Grid"),
            Table(name="map", title="Map"),
            Table(name="shares", title="Where samples are answered", columns=(
                Column(name="policy", title="Policy", quantity="text"),
                Column(name="tier", title="Tier", quantity="text"),
                Column(name="share", title="Share", quantity="share"),
            )),
            Table(name="empty", title="Nothing came of this", columns=(
                Column(name="a", title="A", quantity="number"),)),
        ),
        figures=(
            Figure(name="frontier", title="Accuracy against cost", table="frontier", kind="lines",
                   about="Each line is a policy at seven prices; cheaper is left, better is up.",
                   x="cost", y="accuracy", color="policy", facet="task", low="low", high="high",
                   marks="chosen", hover=("price",), x_title="cost (λ)", y_title="accuracy",
                   color_title="policy", x_quantity="cost"),
            Figure(name="points", title="Score and cost of every row", table="main", kind="points",
                   about="The rows of the table above, both tasks.", x="cost", y="score",
                   color="policy", low="low", high="high", hover=("n",), x_quantity="cost",
                   x_title="cost (λ)"),
            Figure(name="grid", title="Reward over the grid", table="grid", kind="heat", x="α", y="β",
                   about="Validation reward at each pair of thresholds.", color="reward",
                   color_quantity="number", y_quantity="number", marks="chosen", source="paper 1, eq. 4"),
            Figure(name="map", title="Data map", table="map", kind="points", x="deviation", y="mean",
                   about="One point per validation sample.", color="pool", hover=("text",),
                   y_quantity="number", x_title="variability σ̂", y_title="confidence μ̂"),
            Figure(name="shares", title="Shares of the tiers", table="shares", kind="stacked",
                   about="Where each policy answers.", x="policy", y="share", color="tier",
                   x_quantity="text", y_quantity="share"),
            Figure(name="bars", title="Accuracy by tier", table="shares", kind="bars",
                   about="Accuracy of what each tier answers.", x="policy", y="accuracy",
                   color="tier", x_quantity="text"),
            Figure(name="nothing", title="A figure without data", table="empty", kind="points",
                   about="Nothing to see.", x="a", y="a"),
        ),
        notes=("One seed on cola.", EVIL),
        versions={"dimec": "0.1.0", "numpy": "2.4"},
    )  # fmt: skip


def assert_whole(folder: Path) -> Result:
    """Check that all which a report will look for in a study's result is there."""
    result = read_result(folder)
    assert result.tables
    rows = {table.name: read_rows(folder, table.name) for table in result.tables}
    for table in result.tables:
        names = set(rows[table.name][0])
        for column in table.columns:
            used = {column.name, column.low, column.high, column.spread, column.stands_out}
            assert used - {None} <= names, (table.name, column.name)
        assert table.group is None or table.group in names
        assert not table.columns or table.about
    for figure in result.figures:
        names = set(rows[figure.table][0])
        drawn = {figure.x, figure.y, figure.color, figure.facet, figure.marks}
        drawn |= {figure.low, figure.high, *figure.hover}
        assert drawn - {None} <= names, figure.name
    assert all(verdict.evidence for verdict in result.verdicts)
    return result
