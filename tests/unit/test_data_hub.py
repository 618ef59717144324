"""Rows from the hub. The hub itself is the one thing that is stood in for."""

from __future__ import annotations

import datasets
import huggingface_hub
import pytest
from huggingface_hub.errors import OfflineModeIsEnabled

from dimec.core.errors import DataError, MissingExtraError, UnreachableError
from dimec.data import load_dataset


class Hub:
    """A hub that answers with rows, or fails at the question or at the download."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[object] = []
        self.probe_error: Exception | None = None
        self.load_error: Exception | None = None
        self.rows: dict[str, list[object]] = {}
        hub = self

        def dataset_info(_: object, path: str, *, timeout: float) -> None:
            assert timeout < 10
            if hub.probe_error:
                raise hub.probe_error

        def load(path: str, config: str, *, split: str) -> datasets.Dataset:
            hub.asked.append((path, config, split))
            if hub.load_error:
                raise hub.load_error
            return datasets.Dataset.from_dict(hub.rows)

        monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
        monkeypatch.setattr(datasets, "load_dataset", load)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    return Hub(monkeypatch)


def test_a_registry_task_comes_by_its_name(hub: Hub) -> None:
    hub.rows = {"question": ["Who?", "When?"], "sentence": ["He.", "No."], "label": [0, 1]}
    dataset = load_dataset("qnli")
    assert hub.asked == [("nyu-mll/glue", "qnli", "train")]
    assert dataset.first == ("Who?", "When?")
    assert dataset.second == ("He.", "No.")
    assert dataset.labels.tolist() == [0, 1]
    assert dataset.source == "hub nyu-mll/glue qnli"


def test_rows_without_text_are_left_out_and_counted(hub: Hub) -> None:
    hub.rows = {
        "question1": ["Who?", "How?", "Why?"],
        "question2": ["Who now?", "", "Why so?"],
        "label": [0, 0, 1],
    }
    dataset = load_dataset("qqp")
    assert dataset.row_ids.tolist() == [0, 2]
    assert dataset.source == "hub nyu-mll/glue qqp (rows without text left out: 1)"


def test_a_fault_in_the_hubs_rows_names_hub_and_row(hub: Hub) -> None:
    hub.rows = {"sentence": ["a", "b"], "label": [0, -1]}
    with pytest.raises(DataError, match=r"^hub nyu-mll/glue sst2, row 2: .*unlabelled"):
        load_dataset("sst2")


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("no route"),
        TimeoutError("late"),
        datasets.exceptions.DatasetNotFoundError("gone"),
        ValueError("BuilderConfig 'sst2' not found"),
    ],
)
@pytest.mark.parametrize("moment", ["probe_error", "load_error"])
def test_an_unreachable_hub_names_the_offline_ways(hub: Hub, error: Exception, moment: str) -> None:
    setattr(hub, moment, error)
    with pytest.raises(UnreachableError) as caught:
        load_dataset("sst2")
    message = str(caught.value)
    assert "nyu-mll/glue sst2" in message
    assert type(error).__name__ in message
    assert "--data FOLDER|FILE" in message
    assert "reviews" in message
    assert "\n" not in message
    assert caught.value.__cause__ is error
    assert bool(hub.asked) == (
        moment == "load_error"
    )  # nothing that retries runs after a failed probe


def test_offline_mode_goes_to_the_cache(hub: Hub) -> None:
    hub.probe_error = OfflineModeIsEnabled("offline")
    hub.rows = {"sentence": ["a", "b"], "label": [0, 1]}
    assert len(load_dataset("sst2")) == 2


def test_without_the_library_the_error_is_the_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"dimec\[train\]"):
        load_dataset("sst2")


def test_the_built_in_reviews_need_no_hub(hub: Hub) -> None:
    hub.probe_error = hub.load_error = ConnectionError()
    dataset = load_dataset("reviews")
    assert dataset.source == "built-in reviews"
    assert len(dataset) == 6000
