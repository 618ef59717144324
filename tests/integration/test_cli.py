"""The command line in processes of its own: output, exit codes, and never a traceback."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Collection
from pathlib import Path

import pandas as pd
import pytest
from tests.commands import Here, dimec

from dimec.bundle import load_bundle
from dimec.core.errors import OptionError
from dimec.core.metrics import f1_of
from dimec.core.options import checked
from dimec.core.progress import SILENT
from dimec.data import reviews
from dimec.deploying.ladder import build_ladder, run_calibration
from dimec.deploying.options import ExportOptions
from dimec.deploying.promise import Assurance
from dimec.deploying.promised import PromiseRequest
from dimec.policies import POLICIES
from dimec.policies.guarded import DimecGuarded
from dimec.runs.run import Run

GUARDED = ("--policy", "dimec-guarded")


def test_version() -> None:
    assert dimec("--version").stdout.startswith("dimec ")


def test_the_table_fits_a_hundred_columns(tiny_run: Run, here: Here) -> None:
    lines = here("evaluate", tiny_run.folder, "--all").out.splitlines()
    to_copy = [line for line in lines if line.startswith("  dimec ")]  # a command is never broken
    assert max(len(line) for line in lines if line not in to_copy) <= 100
    for name in (
        *(name for name, policy in POLICIES.items() if policy.bottleneck is None),
        "all-mobile",
        "all-edge",
        "all-cloud",
        "bert-on-mobile",
        "oracle",
        "majority",
    ):
        assert any(line.startswith(name) for line in lines)


def test_the_f1_of_a_class_is_what_a_run_is_scored_by(
    tiny_run: Run, tmp_path: Path, here: Here
) -> None:
    folder = shutil.copytree(tiny_run.folder, tmp_path / "run")
    config = json.loads((folder / "config.json").read_text())
    config["task"]["metric"] = f1_of(0)
    (folder / "config.json").write_text(json.dumps(config))
    here("evaluate", folder)
    document = json.loads((folder / "evaluation" / "test.json").read_text())
    assert document["metric"] == document["recommendation"]["metric"] == f1_of(0)
    scores = {row["policy"]: row["score"] for row in document["rows"]}
    of_class = document["classes"]["rows"][0]
    assert scores["all-cloud"] == pytest.approx(of_class["full_model"]["f1"])
    assert scores["recommended"] == pytest.approx(of_class["recommended"]["f1"])


def test_json_holds_the_documented_fields(tiny_run: Run, here: Here) -> None:
    said = here("evaluate", tiny_run.folder, "--policy", "dimec-dc-fixed", "--json").out
    document = json.loads(said)
    assert set(document) == {
        "task", "source", "n", "metric", "price", "reference_cost", "label_mapping", "models", "rows", "not_run",
        "unit", "profile", "currency", "recommendation", "classes", "warnings", "summary",
    }  # fmt: skip
    row = document["rows"][0]
    assert set(row) == {
        "policy", "kind", "score", "score_ci95", "accuracy", "accuracy_ci95", "cost", "cost_change",
        "cost_vs_cloud", "shares", "random_at_shares", "random_at_shares_ci95", "random_at_cost",
        "random_at_cost_ci95", "oracle_at_cost", "gap_closed", "auc_mobile_right", "depths",
        "operating_point", "shipped_bytes", "learning", "measured", "null_because",
    }  # fmt: skip
    assert set(row["shares"]) == set(row["depths"]) == {"mobile", "edge", "cloud"}
    support = [each["support"] for each in document["classes"]["rows"]]
    assert sum(support) == document["n"] == len(tiny_run.test)
    for matrix in ("full_model_confusion", "recommended_confusion"):
        assert [sum(counts) for counts in document["classes"][matrix]] == support
    kept = json.loads((tiny_run.folder / "evaluation" / "test.json").read_text())
    assert kept == document


def test_bad_usage_and_bad_input_end_with_2_and_no_traceback(
    tiny_run: Run, tmp_path: Path, here: Here
) -> None:
    run, out = str(tiny_run.folder), str(tmp_path / "out")
    cases: list[tuple[list[str], str]] = [
        (["evaluate", str(tmp_path / "nowhere")], "no run"),
        (["evaluate", run, "--cost", "to_cloud=far"], "NAME=NUMBER"),
        (["export", run, "--out", out, "--max-drop", "0", "--assurance", "0.9"], "certifying rows"),
        (["evaluate", run, "--max-drop", "1", "--price", "1"], "finds the price itself"),
        (["export", run, "--out", out, *GUARDED, "--cuts", "4/4"], "asks no server"),
        (["evaluate", run, "--max-drop", "-1"], "--max-drop"),
        (["export", run, "--out", out, "--budget", "1"], "all-cloud itself"),
        (["export", run, "--out", out, "--budget", "1", "--max-drop", "1"], "opposite"),
        (["export", run, "--out", out, "--policy", "dimee-fixed", "--cuts", "all"], "--mobile-layers and"),
        (
            ["export", run, "--out", out, *GUARDED, "--assurance", "0.9", "--recalibrate"],
            "--recalibrate changes",
        ),
        (
            ["export", run, "--out", out, *GUARDED, "--assurance", "0.9", "--quantize", "all"],
            "quantise mobile and edge alone",
        ),
        (["evaluate", run, "--mobile-layers", "4"], "--mobile-layers"),
        (["frontier", run, "--prices", "-1"], "--price"),
        (["evaluate", run, "--data", str(tmp_path / "nowhere.csv")], "nowhere.csv"),
        (["fit", "reviews", "--out", out, "--epochs", "0"], "--epochs"),
        (["fit", "reviews", "--out", out, "--max-length", "4000"], "--max-length"),
        (["fit", "reviews", "--out", out, "--mobile-layers", "6"], "--mobile-layers"),
        (["fit", "sst2", "--out", out], "--data"),
        (["fit", "reviews"], "--out"),
        (["compress", str(tmp_path / "nowhere"), "--kind", "bottlenet", "--layer", "2", "--width", "4"], "no run"),
        (["nonsense"], "nonsense"),
        (["plan", run, "--mobile-layers", "0"], "--mobile-layers"),
        (["plan", run, "--cuts", "2"], "such as 2/3,3/4"),
        (["plan", run, "--cuts", "1/2,3/2"], "depths 3, 2, 4"),
        (["plan", run, "--cuts", "all", "--mobile-layers", "1"], "--cuts"),
        (["plan", run, "--budget", "0.5", "--max-drop", "1"], "opposite"),
        (["study", "main", "--out", out, "--pooling", "max"], "--pooling"),
        (["report", "nowhere", "--out", out], "nowhere is no run"),
    ]  # fmt: skip
    for arguments, remedy in cases:
        said = here(*arguments, code=2)
        assert remedy in said.err.replace("\n", " "), (arguments, said)
        assert said.out == "", arguments
    assert not Path(out).exists()


def test_what_cannot_run_is_listed_with_a_command_that_makes_it_run(
    tmp_path: Path, tiny_backbone: Path, here: Here
) -> None:
    sparse = tmp_path / "sparse"
    here(
        "fit", "reviews", "--out", sparse, "--backbone", tiny_backbone, "--pooling", "mean",
        "--max-rows", "200", "--epochs", "1", "--exits", "tiers", "--skip-empty", "--no-texts",
    )  # fmt: skip
    document = json.loads(here("evaluate", sparse, "--all", "--json").out)
    run = [row["policy"] for row in document["rows"] if row["kind"] == "policy"][:-1]
    assert run == [
        "dimec-dc-fixed", "dimec-dc-adaptive", "dimee-fixed", "dimee-adaptive", "random", "cde", "adaee",
        "neurosurgeon", "dimec-cascade", "dimec-guarded",
    ]  # fmt: skip
    by_needs: dict[str, list[dict[str, str]]] = {}
    for each in document["not_run"]:
        by_needs.setdefault(each["needs"], []).append(each)
    assert {key: [each["policy"] for each in value] for key, value in by_needs.items()} == {
        "an exit after every layer": [
            "deebert", "early-exit", "pabee", "berxit", "beem", "uat",
            "splitee", "splitee-s", "i-splitee", "uee-ucb", "lee", "dee",
        ],
        "a learned bottleneck": ["bottlenet", "bottlenet-pp", "bottlefit"],
        # Neurosurgeon resumes what the device began, so all tiers hold one encoder.
        "another model on a tier": [f"{name}+models" for name in run if name != "neurosurgeon"],
    }  # fmt: skip
    for needs, expected in (
        ("an exit after every layer", {"deebert", "dee"}),
        ("another model on a tier", {"random+models", "all-mobile+models"}),
    ):
        commands = {each["command"] for each in by_needs[needs]}
        assert len(commands) == 1
        fit, evaluation = (shlex.split(part)[1:] for part in commands.pop().split(" && "))
        assert "--skip-empty" in fit and "--no-texts" in fit and "--max-rows" in fit
        here(*fit)
        rows = json.loads(here(*evaluation, "--json").out)["rows"]
        assert expected <= {row["policy"] for row in rows}
    alone = here("evaluate", sparse, "--policy", "deebert", code=2)
    assert "deebert needs an exit after every layer" in alone.err


def test_a_frontier_is_an_evaluation_a_price(tiny_run: Run, here: Here) -> None:
    folder = tiny_run.folder
    arguments = ("--policy", "early-exit", "--policy", "adaee", "--shuffles", "2")
    said = here("frontier", folder, "--prices", "0.4,0,0.1,0.1", *arguments, "--json").out
    document = json.loads(said)
    kept = json.loads((folder / "evaluation" / "frontier-test.json").read_text())
    assert kept == document
    recommended = json.loads(here("evaluate", folder, "--shuffles", "2", "--json").out)
    assert document["recommendation"] == recommended["recommendation"]
    assert [each["price"] for each in document["evaluations"]] == [0, 0.1, 0.4]
    for each in document["evaluations"]:
        alone = here("evaluate", folder, "--price", each["price"], *arguments, "--json")
        marked = next(row for row in each["rows"] if row["policy"] == "recommended")
        each["rows"].remove(marked)
        # What to mend, and the classes, are of a single evaluation.
        assert json.loads(alone.out) | {"classes": None, "warnings": []} == each
        assert marked == recommended["rows"][0]
    costs = [each["rows"][0]["cost"] for each in document["evaluations"]]
    assert costs == sorted(costs, reverse=True)
    lines = here("frontier", folder, "--prices", "0,0.1", *arguments).out.splitlines()
    assert max(map(len, lines)) <= 100
    marked, first = (
        next(line for line in lines if line.startswith(each)) for each in ("recommended", "early-")
    )
    assert lines.index(marked) < lines.index(first)
    assert any("all-cloud" in line for line in lines)


def test_a_plan_is_a_menu_or_one_line_of_it(tiny_run: Run, here: Here) -> None:
    def plan(*options: str) -> str:
        return here("plan", tiny_run.folder, *options).out

    menu = plan()
    assert "certify" in menu
    lines = [line for line in menu.splitlines() if "dimec export" not in line]
    assert max(map(len, lines)) <= 100  # but for a command to copy, which is never broken
    result = json.loads(plan("--max-drop", "0.5", "--json"))
    assert [offer["max_drop_points"] for offer in result["offers"]] == [0.5]
    assert result["n_choosing"] + result["n_certifying"] == len(tiny_run.validation)
    counted = plan("--over", "5000")
    assert "as counted on the next 5,000 texts" in " ".join(counted.split())
    assert "--over 5000" in counted
    whole = json.loads(plan("--budget", "1", "--json"))
    assert whole["offers"][0]["policy"] == "all-cloud"
    assert whole["latency_profile"] == "phone-4g" and whole["offers"][0]["latency_ms"] > 70
    timed = plan("--profile", "phone-4g", "--unit", "ms")
    assert "--profile phone-4g --unit ms" in timed
    slow = plan("--budget", "1", "--profile", "raspberry-pi")
    assert "by the profile raspberry-pi" in " ".join(slow.split())


@pytest.mark.parametrize(
    "options",
    [
        ["--max-drop", "60", "--assurance", "0.5", "--over", "30", "--cuts", "all"],
        ["--budget", "0.9", "--cost", "to_cloud=9", "--cost", "to_edge=1"],
        ["--budget", "0.9", "--profile", "phone-4g", "--unit", "ms"],
    ],
)
def test_the_command_that_a_plan_prints_deploys_what_it_offers(
    tiny_run: Run, tmp_path: Path, here: Here, options: list[str]
) -> None:
    plan = json.loads(here("plan", tiny_run.folder, *options, "--json").out)
    (offer,) = plan["offers"]
    assert offer["policy"] == "dimec-cascade"
    shown = here("plan", tiny_run.folder, *options).out
    compared = "--cuts" in options
    assert plan["n_cuts"] == (4 if compared else 3)
    assert f"{offer['mobile_layers']}/{offer['edge_layers']}" in shown.split()
    assert f"of {plan['n_cuts']} cuts the best" in " ".join(shown.split())
    out = tmp_path / "a bundle"
    words = shlex.split(shown.splitlines()[-1].removeprefix("to deploy one: "))
    assert words[:2] == ["dimec", "export"]
    words[words.index("BUNDLE")] = str(out)
    report = json.loads(here(*words[1:], "--json").out)
    for name in ("max_drop_points", "drop_points"):
        assert report["promise"][name] == pytest.approx(offer[name])
    manifest = load_bundle(out).mobile.manifest
    assert manifest.promise is not None
    assert manifest.promise.model_dump(mode="json") == report["promise"]
    assert report["price"] == offer["price"]
    layers = [tier["layers"] for tier in report["tiers"]]
    assert layers == [offer["mobile_layers"], offer["edge_layers"], 4]


def write_reviews(path: Path, rows: Collection[int]) -> Path:
    """Write some of the built-in reviews as a file, the columns with names of its own."""
    chosen = reviews().take([*rows])
    moods = [chosen.task.label_names[label] for label in chosen.labels]
    pd.DataFrame({"body": chosen.first, "mood": moods}).to_csv(path, index=False)
    return path


def test_further_rows_certify_a_plan_and_what_it_exports(
    tiny_run: Run, tmp_path: Path, here: Here
) -> None:
    known = {*tiny_run.splits["train"].tolist(), *tiny_run.splits["validation"].tolist()}
    others = [row for row in range(400) if row not in known]
    data = write_reviews(tmp_path / "more.csv", others)
    named = ["--text-column", "body", "--label-column", "mood"]
    cut = ["--mobile-layers", "1", "--edge-layers", "2"]
    options = [*named, *cut, "--data", data, "--budget", "0.9"]
    plan = json.loads(here("plan", tiny_run.folder, *options, "--json").out)
    assert (plan["n_choosing"], plan["n_certifying"]) == (len(tiny_run.validation), len(others))
    shown = here("plan", tiny_run.folder, *options).out.splitlines()[-1]
    words = shlex.split(shown.removeprefix("to deploy one: "))
    words[words.index("BUNDLE")] = str(tmp_path / "bundle")
    report = json.loads(here(*words[1:], "--json").out)
    assert report["promise"]["rows"] == len(others)
    assert report["promise"]["drop_points"] == pytest.approx(plan["offers"][0]["drop_points"])
    again = json.loads(here(*words[1:], "--quantize", "mobile,edge", "--json").out)
    assert again["promise"]["rows"] == len(others)
    seen = write_reviews(tmp_path / "seen.csv", [*others[:20], min(known)])
    refused = here("plan", tiny_run.folder, *named, "--data", seen, code=2)
    assert "--data" in refused.err


def test_rows_certify_a_promise_or_nothing(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="--certify"):
        checked(ExportOptions, {"certify": tmp_path / "rows.csv"})


def test_a_promised_cascade_is_exported_under_a_guard(
    tiny_run: Run, tmp_path: Path, here: Here
) -> None:
    out = tmp_path / "bundle"
    options = ["--max-drop", "99", "--assurance", "0.95", "--audit-rate", "0.25", "--slack", "3"]
    said = here("export", tiny_run.folder, "--out", out, *GUARDED, *options, "--json").out
    report = json.loads(said)
    assert (report["policy"], report["promise"]["max_drop_points"]) == ("dimec-guarded", 99)
    bundle = load_bundle(out)
    policy = bundle.mobile.policy()
    assert isinstance(policy, DimecGuarded)
    cuts = [cut for cut in tiny_run.cuts() if cut["ee"].mobile < 4]  # audits need the cloud
    ladder = build_ladder(run_calibration(tiny_run), cuts=cuts)
    promised = ladder.certified(99, Assurance())[-1]
    assert policy.rungs[0].cascade.points == promised.policy.points
    kept = [rung.policy.points for rung in ladder.certified(99, Assurance())]
    assert all(rung.cascade.points in kept for rung in policy.rungs[:-1])
    assert (policy.guard.audit_rate, policy.guard.slack) == (0.25, 0.03)
    assert bundle.mobile.manifest.price == promised.price
    data = tmp_path / "texts.csv"
    data.write_text("text,label\nfine,positive\nawful,negative\n")
    refused = here("evaluate", out, "--data", data, "--slack", "1", code=2)
    assert "is fitted already" in " ".join(refused.err.split())


def test_under_a_guard_what_a_budget_buys_is_played_or_all_cloud(tiny_run: Run) -> None:
    said = tiny_run.validation.predictions[:, -1]
    wanted = PromiseRequest(ExportOptions(policy=DimecGuarded.name, budget=0.9), said)
    calibration = run_calibration(tiny_run)
    policy, promise, _ = wanted.of(calibration, [calibration.depths], progress=SILENT)
    assert isinstance(policy, DimecGuarded)
    bought = build_ladder(calibration).affordable(0.9)
    assert policy.rungs[0].cascade.points == bought.policy.points
    assert len(policy.rungs) == 2
    assert promise.max_drop_points == bought.bound_points(Assurance())


def test_a_study_is_listed_run_and_made_a_page_of(
    tiny_run: Run, tiny_backbone: Path, tmp_path: Path, here: Here
) -> None:
    assert "thresholds" in here("study").out
    # the tiny run has these options and rows: nothing is fitted
    options = ["--tasks", "reviews", "--backbone", tiny_backbone, "--max-rows", "600"]
    options += ["--epochs", "2", "--seeds", "1", "--runs", tiny_run.folder.parent]
    made = here("study", "thresholds", *options, "--out", tmp_path / "out", "--json").out
    assert json.loads(made)["study"] == "thresholds"
    written = Path(here("report", tmp_path / "out").out.splitlines()[0])
    assert written == tmp_path / "out" / "report.html"
    assert "<title>" in written.read_text(encoding="utf-8")
    assert (tmp_path / "out" / "tables" / "reward-alpha.tex").exists()
