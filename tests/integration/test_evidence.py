"""Small copies of runs: what is read from them is what the runs say, and studies take them in place of fits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dimec import api
from dimec.core.errors import OptionError, OutputError
from dimec.reporting.results import read_result
from dimec.runs.exit_table import ExitTable
from dimec.runs.run import Run
from dimec.studies.evidence import keep, projection


@pytest.fixture(scope="module")
def fitted(tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("evidence") / "run"
    options: dict[str, Any] = {"max_rows": 600, "epochs": 2, "split": "random", "pooling": "mean"}
    return api.fit("reviews", out=folder, backbone=str(tiny_backbone), **options)


@pytest.fixture(scope="module")
def kept(fitted: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return keep(fitted, tmp_path_factory.mktemp("kept"))


def test_a_copy_says_what_the_run_says(fitted: Run, kept: Path) -> None:
    copy = Run.open(kept)
    for name in ("validation", "test"):
        one, two = getattr(fitted, name), getattr(copy, name)
        assert two.logits.dtype == np.float32 and two.labels.dtype == np.int64
        np.testing.assert_allclose(two.logits, one.logits, rtol=1e-3, atol=1e-4)
        for column in ("labels", "n_tokens", "payload_bytes", "row_ids"):
            np.testing.assert_array_equal(getattr(two, column), getattr(one, column))
    assert copy.validation.dynamics is not None and copy.validation.exit_zero is not None
    assert copy.epochs() == fitted.epochs()
    found = api.evaluate(kept, price=0.1)
    of_run = {row.policy: row for row in api.evaluate(fitted, price=0.1).rows}
    exact = {"dimec-dc-fixed", "dimee-fixed", "deebert", "pabee", "dimec-cascade", "all-cloud"}
    for row in found.rows:
        if row.policy in exact:  # half precision may move a row or two across a border
            assert row.score == pytest.approx(of_run[row.policy].score, abs=0.034)
            assert row.cost == pytest.approx(of_run[row.policy].cost, abs=0.2)


def test_a_copy_is_planned_like_its_run(fitted: Run, kept: Path) -> None:
    copy = Run.open(kept)
    assert copy.n_labelled == pytest.approx(fitted.n_labelled, rel=0.02)
    of_copy, of_run = (api.plan(each) for each in (kept, fitted))
    assert (of_copy.n_choosing, of_copy.n_certifying) == (of_run.n_choosing, of_run.n_certifying)
    assert [each.max_drop_points for each in of_copy.offers] == [
        each.max_drop_points for each in of_run.offers
    ]


def test_a_copy_is_small_and_names_nothing_of_the_machine(fitted: Run, kept: Path) -> None:
    sizes = [
        sum(path.stat().st_size for path in (folder / "exits").glob("*.safetensors"))
        for folder in (kept, fitted.folder)
    ]
    assert sizes[0] < 0.6 * sizes[1]
    assert sorted(path.name for path in kept.iterdir()) == ["config.json", "exits", "metrics.jsonl"]
    assert str(fitted.folder.parent) not in (kept / "config.json").read_text()
    options = json.loads((kept / "config.json").read_text())["options"]
    assert "/" not in options["backbone"] and options["data"] is None


def test_an_existing_copy_is_left_alone(fitted: Run, kept: Path) -> None:
    with pytest.raises(OutputError):
        keep(fitted, kept.parent)


def test_the_first_components_keep_distances_between_rows() -> None:
    draws = np.random.default_rng(0)
    spread = draws.normal(size=(300, 160)) * np.linspace(3, 0.01, 160)
    rows = spread.astype(np.float32)
    short = rows @ projection(rows)
    assert short.shape == (300, 128)
    whole, kept = (np.linalg.norm(each[1:] - each[:-1], axis=1) for each in (rows, short))
    np.testing.assert_allclose(kept, whole, rtol=0.05)


def test_directions_between_pools_are_kept_whatever_the_rest() -> None:
    draws = np.random.default_rng(1)
    rows = draws.normal(size=(400, 200)).astype(np.float32) * 10
    pools = draws.integers(0, 3, 400).astype(np.int8)
    project = projection(rows, [pools])
    whole, short = (
        [each[pools == pool].mean(axis=0) for pool in range(3)] for each in (rows, rows @ project)
    )
    nearest, again = (
        np.argmin([np.linalg.norm(each - centroid, axis=1) for centroid in centroids], axis=0)
        for each, centroids in ((rows, whole), (rows @ project, short))
    )
    np.testing.assert_array_equal(nearest, again)


def test_a_study_reads_copies_and_fits_nothing(
    kept: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    given: dict[str, Any] = {"runs": kept.parent, "backbone": tiny_backbone.name, "fitted": True}
    result, folder = api.study("pools", out=tmp_path / "pools", tasks=("reviews",), **given)
    assert [run.folder for run in result.runs] == [str(kept)]
    (run,) = read_result(folder).runs
    assert (run.epochs, run.batch_size, run.max_rows) == (2, 32, 600)
    assert {path.name for path in kept.parent.iterdir()} == {kept.name}
    for wrong in ({"backbone": "other"}, {"pooling": "cls"}, {"tasks": ("mrpc",)}):
        with pytest.raises(OptionError, match="--fitted"):
            api.study("pools", out=tmp_path / "no", **{"tasks": ("reviews",), **given, **wrong})


def test_narrow_numbers_of_another_kind_are_refused(kept: Path, tmp_path: Path) -> None:
    from dimec.core.errors import RunError
    from dimec.core.tensors import read_arrays, write_tensors

    header, arrays = read_arrays(kept / "exits" / "test.safetensors")
    arrays["logits"] = arrays["logits"].astype(np.int8)
    write_tensors(tmp_path / "bad.safetensors", arrays, header=header)
    with pytest.raises(RunError):
        ExitTable.load(tmp_path / "bad.safetensors")


EVIDENCE = Path(__file__).parents[2] / "evidence"


def test_what_is_kept_here_is_whole_and_small() -> None:
    copies = [path.parent for path in EVIDENCE.glob("*/config.json")]
    for folder in copies:
        run = Run.open(folder)
        assert len(run.validation) and len(run.test) and run.epochs()
        assert run.config.options.data is None and "/" not in run.config.options.backbone
    assert sum(path.stat().st_size for path in EVIDENCE.rglob("*") if path.is_file()) < 1.2e7
