"""A corpus: each row is answered once, as by itself, whatever is killed on the way; here, at a URL, and on Ray."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.bundles import with_policy

import dimec
from dimec.bundle import Bundle
from dimec.core.errors import DataError, OptionError
from dimec.corpus import blocks, on_ray
from dimec.corpus.job import BulkSummary
from dimec.data import reviews
from dimec.deploying.ladder import run_calibration
from dimec.policies.cascade import DimecCascade
from dimec.runs.run import Run

TEXTS = list(reviews(600, seed=11).first)
N_FILES = 24
COMMAND = [sys.executable, "-c", "from dimec.cli import main; main()"]
"""Ray warns of its own code, so that no warning is an error here."""


@pytest.fixture(scope="module")
def cascade(tiny_bundle: Bundle, tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a bundle whose cascade answers on all tiers."""
    folder = tmp_path_factory.mktemp("cascade") / "bundle"
    [policy] = DimecCascade.fit_at([0.02], run_calibration(tiny_run))
    return with_policy(tiny_bundle, folder, policy).folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder of many files, a block each."""
    folder = tmp_path_factory.mktemp("corpus")
    texts = [" ".join(TEXTS[row : row + 8]) for row in range(200)]
    for file in range(N_FILES):
        found = {"key": list(range(200)), "text": [f"{file} {each}" for each in texts]}
        pq.write_table(pa.table(found), folder / f"{file:02d}.parquet")
    return folder


def answers(out: Path) -> list[dict[str, Any]]:
    parts = sorted((out / "answers").glob("*.parquet"))
    return [row for part in parts for row in pq.read_table(part).to_pylist()]


def parts(out: Path) -> dict[str, int]:
    return {each.name: each.stat().st_mtime_ns for each in (out / "answers").glob("*.parquet")}


def alike(rows: list[dict[str, Any]], others: list[dict[str, Any]]) -> bool:
    """Say whether rows are the same but for the last digits of a confidence, which hang on the batch."""
    close = all(
        one["confidence"] == pytest.approx(other["confidence"], abs=1e-4)
        for one, other in zip(rows, others, strict=True)
    )
    return close and [row | {"confidence": 0} for row in rows] == [
        row | {"confidence": 0} for row in others
    ]


def test_rows_are_answered_as_single_texts_or_say_why_not(
    cascade: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK_ROWS", 64)
    data = tmp_path / "data"
    data.mkdir()
    lines = [f'{row},"{text}"\n' for row, text in enumerate(TEXTS[:150])]
    (data / "a.csv").write_text("".join(["key,text\n", *lines[:80], "80,\n", *lines[81:]]))
    rows = [{"text": text, "key": f"j{row}"} for row, text in enumerate(TEXTS[150:170])]
    (data / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (data / "notes.md").write_text("no data")
    done = dimec.bulk(cascade, data=data, out=tmp_path / "out", id_column="key")
    found = answers(tmp_path / "out")
    assert [row["row"] for row in found] == [*range(150), *range(20)]
    assert [row["id"] for row in found] == [
        *map(str, range(150)),
        *(f"j{row}" for row in range(20)),
    ]
    bad = found.pop(80)
    assert bad["label"] is bad["tier"] is None and "empty" in bad["error"]
    with dimec.Classifier.from_pretrained(cascade) as clf:
        single = [
            next(iter(clf.device.stream(iter([each])))) for each in TEXTS[:80] + TEXTS[81:170]
        ]
    for row, answer in zip(found, single, strict=True):
        assert (row["label"], row["tier"], row["layer"], row["error"]) == (
            *(answer.label, str(answer.tier), answer.layer),
            None,
        )
        assert row["cost"] == pytest.approx(answer.cost)
    assert (done.rows, done.errors, done.files) == (169, 1, 2)
    assert done.cost == pytest.approx(np.mean([each.cost for each in single]))
    assert min(done.shares.values()) > 0

    kept = parts(tmp_path / "out")
    assert len(kept) == 4
    (tmp_path / "out" / "answers" / "00000-0000001.parquet").unlink()
    again = dimec.bulk(cascade, data=data, out=tmp_path / "out", id_column="key")
    assert again == done and len(answers(tmp_path / "out")) == 170
    new = parts(tmp_path / "out")
    assert {name for name in kept if kept[name] != new[name]} == {"00000-0000001.parquet"}


def test_a_url_in_and_out(cascade: Path, tmp_path: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/texts/a.csv", ("text\n" + "".join(f'"{each}"\n' for each in TEXTS[:30])).encode())
    dimec.bulk(cascade, data="memory://texts", out="memory://labelled")
    with memory.open("/labelled/answers/00000-0000000.parquet") as file:
        assert pq.read_table(file).num_rows == 30
    assert not memory.exists("/labelled/.partial")


def test_the_promise_of_a_corpus(cascade: Path, tmp_path: Path) -> None:
    data = tmp_path / "texts.parquet"
    pq.write_table(pa.table({"text": TEXTS}), data)
    promised = dimec.bulk(cascade, data=data, out=tmp_path / "out", max_drop=20, assurance=0.9)
    assert promised.promise is not None and promised.promise.point >= 0
    assert promised.promise.differing <= promised.promise.allowed
    everything = dimec.bulk(cascade, data=data, out=tmp_path / "cloud", max_drop=0, assurance=0.9)
    cloud = answers(tmp_path / "cloud")
    assert {row["tier"] for row in cloud} == {"cloud"}
    assert everything.cost_vs_cloud == pytest.approx(1, abs=0.01)
    found = answers(tmp_path / "out")
    differ = sum(one["label"] != other["label"] for one, other in zip(found, cloud, strict=True))
    assert 0 < differ <= 0.2 * len(TEXTS)
    assert promised.cost < everything.cost
    sampled = pq.read_table(tmp_path / "out" / "sample" / "00000-0000000.parquet")
    assert sampled.num_rows == promised.promise.sampled < len(TEXTS)
    for row, label in zip(*(sampled[each].to_pylist() for each in ("row", "label")), strict=True):
        assert (found[row]["label"], found[row]["layer"]) == (label, 4)
        assert cloud[row]["label"] == label


def test_what_cannot_be_labelled_is_refused(
    cascade: Path, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    data, out = tmp_path / "texts.parquet", tmp_path / "out"
    pq.write_table(pa.table({"text": TEXTS[:5]}), data)
    dimec.bulk(cascade, data=data, out=out)
    with pytest.raises(OptionError, match="id column"):
        dimec.bulk(cascade, data=data, out=out, id_column="text")
    pq.write_table(pa.table({"text": TEXTS[:6]}), data)
    with pytest.raises(OptionError, match="corpus"):
        dimec.bulk(cascade, data=data, out=out)
    with pytest.raises(OptionError, match="--out"):
        dimec.bulk(cascade, data=data, out=tiny_bundle.folder)
    with pytest.raises(OptionError, match="--max-drop"):
        dimec.bulk(tiny_bundle.folder, data=data, out=tmp_path / "new", max_drop=1)
    with pytest.raises(OptionError, match="--workers"):
        dimec.bulk(cascade, data=data, out=tmp_path / "new", workers=2)
    with pytest.raises(OptionError, match="--id-column"):
        dimec.bulk(cascade, data=data, out=tmp_path / "new", id_column="key")
    with pytest.raises(DataError, match="--data"):
        dimec.bulk(cascade, data=tmp_path / "none", out=tmp_path / "newer")
    with pytest.raises(OptionError, match="--data"):
        dimec.bulk(cascade, data="nowhere://texts", out=tmp_path / "newest")


def killed(arguments: list[str], out: Path) -> dict[str, int]:
    """Run a command, kill it with -9 once it has a part, and return the parts that it leaves."""
    process = subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.DEVNULL)
    while not parts(out) and process.poll() is None:
        time.sleep(0.002)
    process.kill()
    process.wait()
    return parts(out)


Labelled = tuple[BulkSummary, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def whole(cascade: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Labelled:
    """Label the corpus without a fault; give what the job says and its answers."""
    out = tmp_path_factory.mktemp("whole") / "out"
    return dimec.bulk(cascade, data=corpus, out=out), answers(out)


def test_a_killed_process_loses_and_repeats_nothing(
    cascade: Path, corpus: Path, whole: Labelled, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    left = killed(["bulk", str(cascade), "--data", str(corpus), "--out", str(out)], out)
    assert 0 < len(left) < N_FILES
    assert dimec.bulk(cascade, data=corpus, out=out) == whole[0]
    new = parts(out)
    assert len(new) == N_FILES and left.items() <= new.items()
    assert answers(out) == whole[1]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Give a Ray cluster of two nodes on this machine."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # 15 by default, which starves on a busy machine
    from ray.cluster_utils import Cluster

    found = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "include_dashboard": False, "object_store_memory": 10**8},
    )
    yield found
    found.shutdown()


@pytest.mark.filterwarnings("default")  # Ray warns of its own code
def test_on_ray_neither_a_killed_driver_nor_a_lost_node_loses_or_repeats_anything(
    cascade: Path,
    corpus: Path,
    whole: Labelled,
    cluster: Any,
    tmp_path: Path,
) -> None:
    node = cluster.add_node(num_cpus=1, object_store_memory=10**8)
    out = tmp_path / "out"
    command = ["bulk", str(cascade), "--data", str(corpus), "--out", str(out)]
    left = killed([*command, "--ray", cluster.address], out)
    assert 0 < len(left) < N_FILES

    def lose_a_node() -> None:
        while len(parts(out)) <= len(left):
            time.sleep(0.002)
        cluster.remove_node(node, allow_graceful=False)

    losing = threading.Thread(target=lose_a_node)
    losing.start()
    assert dimec.bulk(cascade, data=corpus, out=out, ray=cluster.address) == whole[0]
    losing.join()
    new = parts(out)
    assert len(new) == N_FILES and left.items() <= new.items()
    assert alike(answers(out), whole[1])

    # One file feeds all workers: its blocks travel apart.
    import ray

    def read(batch: dict[str, Any]) -> Iterator[dict[str, list[int]]]:
        yield from ({"name": [each]} for each in range(5))

    with on_ray.cluster(cluster.address):
        with on_ray._one_row_a_block():
            rows = ray.data.from_items([{"file": 0}]).map_batches(read, batch_size=1, num_cpus=0)
        assert rows.materialize().num_blocks() == 5
