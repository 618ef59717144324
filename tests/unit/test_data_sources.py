"""Loading labelled text: every file format, GLUE's own layouts, column and label recognition, the dataset itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dimec.core.errors import DataError, OptionError
from dimec.core.options import LabelledColumns
from dimec.data import TextDataset, load_dataset, load_labelled
from dimec.data.tasks import TASKS, find_task
from tests.inputs import write, write_columns

TEXTS, LABELS = ("the soup was cold", "a fine day out", "never again"), ("bad", "good", "bad")


def test_a_task_is_found_under_its_usual_spellings() -> None:
    assert find_task("SST-2") is find_task("sst2") is TASKS["sst2"]
    assert find_task("mine") is None


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet"])
def test_every_format_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    path = write_columns(tmp_path / f"mine{suffix}", TEXTS, LABELS)
    dataset = load_dataset("mine", data=path)
    assert dataset.first == TEXTS
    assert dataset.second is None
    assert dataset.task.name == "mine"
    assert dataset.task.label_names == ("bad", "good")
    assert dataset.task.metric == "accuracy"
    assert dataset.task.text_columns == ("text",)
    assert dataset.labels.tolist() == [0, 1, 0]
    assert dataset.labels.dtype == dataset.row_ids.dtype == np.int64
    assert dataset.row_ids.tolist() == [0, 1, 2]
    assert dataset.source == str(path)


GLUE_FILES = {
    "sst2": 'sentence\tlabel\na quiet "marvel \t1\nit drags\t0\n',
    "cola": "zz01\t1\t\tShe left early.\nzz02\t0\t*\tLeft she early the.\n",
    "mrpc": "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
    '1\t7\t8\tHe said "no .\tHe refused .\n0\t9\t10\tIt rained .\tIt was dry .\n',
    "qqp": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
    "0\t1\t2\tHow far is it?\tWhat is the distance?\t1\n1\t3\t4\tWho won?\tWhere is it?\t0\n",
    "qnli": "index\tquestion\tsentence\tlabel\n"
    "0\tWho sang?\tThe choir sang.\tentailment\n1\tWhen?\tIt is blue.\tnot_entailment\n",
    "mnli": "index\tpromptID\tsentence1\tsentence2\tlabel1\tgold_label\n"
    "0\t1\tHe runs.\tHe moves.\tneutral\tentailment\n1\t2\tHe runs.\tHe sits.\tneutral\tcontradiction\n",
    "rte": "index\tsentence1\tsentence2\tlabel\n"
    "0\tOslo is cold.\tIt is cold in Oslo.\tentailment\n1\tA cat sat.\tA dog sat.\tnot_entailment\n",
}
GLUE_LABELS = {"cola": [1, 0], "mrpc": [1, 0], "mnli": [0, 2], "qqp": [1, 0], "sst2": [1, 0]}


@pytest.mark.parametrize("name", sorted(GLUE_FILES))
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_glue_files_load_as_they_are(tmp_path: Path, name: str, line_end: str) -> None:
    write(tmp_path / "train.tsv", GLUE_FILES[name].replace("\n", line_end))
    write(tmp_path / "test.tsv", "index\tsentence\n0\tunlabelled\n")
    dataset = load_dataset(name, data=tmp_path)
    assert dataset.task == TASKS[name]
    assert dataset.labels.tolist() == GLUE_LABELS.get(name, [0, 1])
    assert (dataset.second is not None) == TASKS[name].is_pair
    assert dataset.row_ids.tolist() == [0, 1]


def test_the_broken_rows_of_glue_qqp_are_left_out_and_counted(tmp_path: Path) -> None:
    broken = '2\t5\t6\t"What is\n"\tIs it so?\t0\n3\t7\t8\tWho?\t\t0\n4\t9\t9\tWhy?\tWhy so?\t1\n'
    dataset = load_dataset("qqp", data=write(tmp_path / "train.tsv", GLUE_FILES["qqp"] + broken))
    assert dataset.row_ids.tolist() == [0, 1, 5]
    assert dataset.source.endswith("(rows without text left out: 3)")


def test_rows_without_text_can_be_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "sentence1,sentence2,label\na,,0\n ,,1\nc,,1\n")
    dataset = load_dataset("sst2", data=path, columns=LabelledColumns(skip_empty=True))
    assert dataset.first == ("a", "c")
    assert dataset.row_ids.tolist() == [0, 2]
    assert dataset.labels.tolist() == [0, 1]
    assert dataset.source == f"{path} (rows without text left out: 1)"


def test_a_second_column_that_is_empty_throughout_means_one_text(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "sentence1,sentence2,label\na b,,0\nc d,,1\n")
    assert load_dataset("sst2", data=path).second is None
    custom = load_dataset("mine", data=path)
    assert custom.second is None
    assert custom.task.text_columns == ("sentence1",)


def test_columns_can_be_named_whatever_their_case(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "A,B,text,Verdict\nx y,z,no,1\np q,r,no,0\n")
    given = LabelledColumns(text_column="a", pair_column="b", label_column="verdict")
    dataset = load_dataset("mine", data=path, columns=given)
    assert dataset.first == ("x y", "p q")
    assert dataset.second == ("z", "r")
    assert dataset.task.text_columns == ("A", "B")


def test_naming_one_column_leaves_the_others_to_be_recognised(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "lead,sentence2,grade\nx y,z,1\np q,r,0\n")
    given = LabelledColumns(text_column="lead", label_column="grade")
    dataset = load_dataset("mrpc", data=path, columns=given)
    assert dataset.second == ("z", "r")
    single = load_dataset("mine", data=path, columns=given)
    assert single.second is None
    paired = write(tmp_path / "b.csv", "text,reply,label\nx y,z,1\np q,r,0\n")
    given = LabelledColumns(pair_column="reply")
    assert load_dataset("mine", data=paired, columns=given).second == ("z", "r")


def test_a_quoted_csv_cell_may_hold_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'text,label\r\n"one,\r\n""two""",a\r\n\r\nthree,b\r\n')
    dataset = load_dataset("mine", data=path)
    assert dataset.first == ('one,\r\n"two"', "three")
    assert dataset.row_ids.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("cells", "names", "codes"),
    [
        (["10", "9", "10"], ("9", "10"), [1, 0, 1]),
        (["2.0", "1", "1.0"], ("1", "2"), [1, 0, 0]),
        (["b", "a", "10"], ("10", "a", "b"), [2, 1, 0]),
        ([True, False, 1], ("0", "1"), [1, 0, 1]),
        ([3.0, 5, "3"], ("3", "5"), [0, 1, 0]),
    ],
)
def test_classes_are_discovered(
    tmp_path: Path, cells: list[object], names: tuple[str, ...], codes: list[int]
) -> None:
    path = write_columns(tmp_path / "a.jsonl", [f"t {i}" for i in range(len(cells))], cells)
    dataset = load_dataset("mine", data=path)
    assert dataset.task.label_names == names
    assert dataset.labels.tolist() == codes


def test_labels_of_a_run_are_names_or_codes_into_them(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label\na,Good\nb,1\nc,bad\nd,0\n")
    dataset = load_dataset("mine", data=path, label_names=["bad", "good"])
    assert dataset.labels.tolist() == [1, 1, 0, 0]
    assert dataset.task.label_names == ("bad", "good")


def test_numbers_are_names_where_the_names_are_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label\na,1\nb,2\n")
    assert load_dataset("stars", data=path, label_names=["1", "2"]).labels.tolist() == [0, 1]
    path = write(tmp_path / "b.csv", "text,label\na,1\nb,0\n")
    with pytest.raises(DataError, match=r"line 3.*'0' is unknown; allowed are 1, 2"):
        load_dataset("stars", data=path, label_names=["1", "2"])


def test_the_metric_can_be_chosen(tmp_path: Path) -> None:
    path = write_columns(tmp_path / "mine.csv", TEXTS, LABELS)
    assert load_dataset("mine", data=path, metric="matthews").task.metric == "matthews"
    assert load_dataset("mine", data=path, metric="f1").task.metric == "f1"
    three = write(tmp_path / "b.csv", "text,label\na,1\nb,2\nc,3\n")
    with pytest.raises(OptionError, match="--positive"):
        load_dataset("mine", data=three, metric="f1")


def test_the_positive_class_of_f1_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label\na,Fraud\nb,ok\nc,other\n")
    assert load_dataset("mine", data=path, positive="Fraud").task.metric == "f1:0"
    assert load_dataset("mine", data=path, positive="OK", metric="f1").task.metric == "f1:1"
    with pytest.raises(OptionError, match="--positive"):
        load_dataset("mine", data=path, positive="spam")
    with pytest.raises(OptionError, match="--positive"):
        load_dataset("mine", data=path, positive="ok", metric="macro-f1")


def test_an_unknown_task_needs_data() -> None:
    with pytest.raises(OptionError, match=r"'mine' is not one of sst2.*--data"):
        load_dataset("mine")


def test_one_column_cannot_serve_twice(tmp_path: Path) -> None:
    path = write_columns(tmp_path / "mine.csv", TEXTS, LABELS)
    given = LabelledColumns(text_column="text", label_column="Text")
    with pytest.raises(OptionError, match="--label-column"):
        load_dataset("mine", data=path, columns=given)


def test_the_room_is_light_until_something_is_read() -> None:
    heavy = "('torch', 'transformers', 'datasets', 'pyarrow', 'huggingface_hub')"
    code = f"import sys, dimec.data; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


class TestFolder:
    """Which file of a folder is read."""

    CSV = "text,label\na b,0\nc d,1\n"

    @pytest.mark.parametrize(
        ("names", "read"),
        [
            (("dev.csv", "train.csv", "notes.md", ".train.csv"), "train.csv"),
            (("all.csv", "README.md"), "all.csv"),
            (("SST-2/train.csv",), "SST-2/train.csv"),
            (
                ("train-00000-of-00001.csv", "validation-00000-of-00001.csv"),
                "train-00000-of-00001.csv",
            ),
        ],
    )
    def test_which_file_is_read(self, tmp_path: Path, names: tuple[str, ...], read: str) -> None:
        for name in names:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            write(tmp_path / name, self.CSV)
        assert load_dataset("sst2", data=str(tmp_path)).source == str(tmp_path / read)

    def test_several_are_listed(self, tmp_path: Path) -> None:
        for name in ("a.csv", "b.csv"):
            write(tmp_path / name, self.CSV)
        with pytest.raises(DataError, match=r"several files .*\(a\.csv, b\.csv\)"):
            load_dataset("mine", data=tmp_path)

    def test_none_says_what_is_there(self, tmp_path: Path) -> None:
        write(tmp_path / "notes.md", "words")
        with pytest.raises(DataError, match=r"no folder called 'mine', but notes\.md"):
            load_dataset("mine", data=tmp_path)


class TestTextDataset:
    """Selecting rows and recognising data again."""

    def dataset(self, **changes: object) -> TextDataset:
        values: dict[str, object] = {
            "task": TASKS["rte"],
            "first": ("ab", "c", "d"),
            "second": ("x", "y", "z"),
            "labels": np.array([0, 1, 1]),
            "row_ids": np.array([4, 5, 9]),
            "source": "here",
        }
        return TextDataset(**(values | changes))  # type: ignore[arg-type]

    def test_take_keeps_order_and_row_ids(self) -> None:
        part = self.dataset().take([2, 0])
        assert len(part) == 2
        assert part.first == ("d", "ab")
        assert part.second == ("z", "x")
        assert part.labels.tolist() == [1, 0]
        assert part.row_ids.tolist() == [9, 4]

    def test_fingerprint_is_of_contents_only(self) -> None:
        fingerprint = self.dataset().fingerprint
        assert len(fingerprint) == 64
        assert self.dataset(source="there", row_ids=np.arange(3)).fingerprint == fingerprint

    @pytest.mark.parametrize(
        "changes",
        [
            {"first": ("a", "bc", "d")},
            {"second": None},
            {"labels": np.array([0, 1, 0])},
            {"task": TASKS["sst2"]},
        ],
    )
    def test_fingerprint_tells_any_change(self, changes: dict[str, object]) -> None:
        assert self.dataset(**changes).fingerprint != self.dataset().fingerprint


@pytest.mark.parametrize("pairs", [True, False])
def test_a_trained_model_is_given_its_own_kind_of_texts(tmp_path: Path, pairs: bool) -> None:
    header = "premise,hypothesis,label" if pairs else "text,label"
    path = write(tmp_path / "mine.csv", f"{header}\n{'a text,' * (1 + pairs)}good\n")
    options: Any = {"data": path, "label_names": ("bad", "good"), "reader": "the bundle reads"}
    with pytest.raises(OptionError, match=r"--data.*the bundle reads"):
        load_labelled("mine", pairs=not pairs, **options)
    dataset = load_labelled("mine", pairs=pairs, **options)
    assert dataset.labels.tolist() == [1]  # the only class that is there keeps the model's code
