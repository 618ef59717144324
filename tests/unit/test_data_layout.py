"""What a file says about itself: separators, quotes, marks and headers; and all its faults told at once."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dimec.core.errors import DataError
from dimec.core.options import LabelledColumns, TextColumns
from dimec.core.progress import SILENT, Progress
from dimec.data import TextDataset, load_dataset, load_labelled
from dimec.data.folding import folded
from dimec.data.unlabelled import of_file
from tests.inputs import write, write_columns

ROWS = [("no, never; |really|", "bad"), ('she said "no"', "good"), ("two\nlines\tof it", "bad")]


def texts_of(
    path: Path, *, skip_bad: bool = False, progress: Progress = SILENT, **columns: str
) -> list[object]:
    """Read a file as `classify` does."""
    given = TextColumns.model_validate(columns)
    texts = of_file(path, pairs=False, columns=given, skip_bad=skip_bad, progress=progress)
    return [text for _, text in texts.read()]


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_what_pandas_writes_is_read_back(
    tmp_path: Path, suffix: str, separator: str, quoting: int, mark: str
) -> None:
    path = tmp_path / f"mine{suffix}"
    frame = pd.DataFrame(ROWS, columns=["text", "label"]).reset_index(names="id")
    written = frame.to_csv(sep=separator, index=False, quoting=quoting, lineterminator="\n")
    write(path, mark + written)
    dataset = load_dataset("mine", data=path)
    assert dataset.first == tuple(text for text, _ in ROWS)
    assert dataset.task.label_names == ("bad", "good")
    assert texts_of(path) == list(dataset.first)


CELL = st.text(st.sampled_from('ab "\t\n,;|'), max_size=6).filter(str.strip)


@given(st.lists(st.tuples(CELL, CELL), min_size=1, max_size=6), st.sampled_from(",;\t|"))
def test_minimal_quoting_is_undone_whatever_the_cells(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], separator: str
) -> None:
    path = tmp_path_factory.mktemp("cells") / "mine.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=separator, lineterminator="\n")
        writer.writerows([("text", "note"), *rows])
    assert texts_of(path) == [text for text, _ in rows]


QUOTED = (
    'a quiet "marvel',
    '"tis so',
    'so "they" say',
    '"Yes," he said .',
    '"so" and "so"',
    '"all"',
)


@pytest.mark.parametrize("text", QUOTED)
def test_quotes_of_a_glue_file_are_text(tmp_path: Path, text: str) -> None:
    rows = f"sentence\tlabel\n{text}\t1\nno, it drags\t0\n"
    path = write(tmp_path / "train.tsv", rows)
    assert load_dataset("sst2", data=path).first[0] == text
    assert texts_of(path)[0] == text


def test_spreadsheets_name_the_separator_and_enclose_commas(tmp_path: Path) -> None:
    named = write(tmp_path / "a.csv", '\ufeff"sep=;"\r\ntext;label\r\n"a;b";x\r\nc;y\r\n')
    assert load_dataset("mine", data=named).first == ("a;b", "c")
    tabbed = write(tmp_path / "b.tsv", 'text\tlabel\r\n"a, b"\tx\r\n"c, d"\ty\r\nplain\ty\r\n')
    assert load_dataset("mine", data=tabbed).first == ("a, b", "c, d", "plain")
    padded = write(tmp_path / "c.csv", 'text, label\n"a, b", "x"\nc, y\n')
    assert load_dataset("mine", data=padded).task.label_names == ("x", "y")


def test_the_header_with_known_names_settles_between_separators(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text;price, old;label\na;1, 5;x\nb;2, 5;y\n")
    assert load_dataset("mine", data=path).first == ("a", "b")


@pytest.mark.parametrize(
    ("contents", "named"),
    [
        ("text^label\na^x\nb^y\n", "'^'"),
        ("id:text:label\n1:a:x\n2:b:y\n", "':'"),
        ("text  label\na  x\n", "'  '"),
        ("text\uff0clabel\na\uff0cx\n", "'\uff0c'"),
    ],
)
def test_another_separator_is_refused_and_named(tmp_path: Path, contents: str, named: str) -> None:
    path = write(tmp_path / "a.csv", contents)
    for read in (texts_of, lambda path: load_dataset("mine", data=path)):
        with pytest.raises(DataError, match="semicolon") as caught:
            read(path)
        assert named in str(caught.value)


def test_two_separators_that_fit_alike_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "a;b|c\n1;2|3\n4;5|6\n")
    with pytest.raises(DataError, match=r"';' .* and by '\|'"):
        texts_of(path, text_column="b|c")


@pytest.mark.parametrize("name", ["lines.csv", "lines.tsv"])
def test_no_first_text_is_lost_for_a_header(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, "my invoice is wrong\nthe password reset failed\n")
    with pytest.raises(DataError, match=r"--text-column.*\.txt"):
        texts_of(path)
    assert texts_of(path, text_column="my invoice is wrong") == ["the password reset failed"]
    assert texts_of(write(tmp_path / "b.csv", "Text\na\n")) == ["a"]
    jsonl = write(tmp_path / "c.jsonl", '{"body": "a"}\n')  # here the name is no text
    assert texts_of(jsonl) == ["a"]


@pytest.mark.parametrize("header", ["id;text;label", "text,label", '"id"\t"text"', "sentence|x"])
def test_a_table_of_another_name_is_not_read_line_by_line(tmp_path: Path, header: str) -> None:
    path = write(tmp_path / "table.txt", f"{header}\n1;a;x\n")
    with pytest.raises(DataError, match="--file") as caught:
        texts_of(path)
    assert caught.value.row == 1


class Warnings(Progress):
    def __init__(self) -> None:
        self.said: list[str] = []

    def warn(self, message: str) -> None:
        self.said.append(message)


def test_a_first_line_that_may_be_a_header_is_said_aloud(tmp_path: Path) -> None:
    heard = Warnings()
    named = write(tmp_path / "a.txt", "text\nfine\n")
    assert texts_of(named, progress=heard) == ["text", "fine"]
    assert ["'text'" in message for message in heard.said] == [True]
    unnamed = write(tmp_path / "b.txt", "no, a message\nfine\n")
    assert texts_of(unnamed, progress=heard)[0] == "no, a message"
    assert len(heard.said) == 1
    texts_of(write(tmp_path / "c.txt", "one\rtwo\nfine\n"), progress=heard)
    assert len(heard.said) == 2


def test_a_header_within_is_no_text(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label\na,x\nb,y\n\ufefftext,label\nc,x\n")
    for read in (texts_of, lambda path: load_dataset("mine", data=path)):
        with pytest.raises(DataError, match="line 4: "):
            read(path)


def test_one_finder_for_labelled_and_unlabelled_files(tmp_path: Path) -> None:
    pair = write(tmp_path / "a.csv", "premise;hypothesis;label\na;b;x\nc;d;y\n")
    with pytest.raises(DataError, match="a pair"):
        texts_of(pair)
    assert texts_of(pair, text_column="premise") == ["a", "c"]
    both = of_file(pair, pairs=True, columns=TextColumns())
    assert [text for _, text in both.read()] == [("a", "b"), ("c", "d")]
    marked = write(tmp_path / "b.jsonl", '{"\\ufeffText": "a", "label": 1}\n')
    assert texts_of(marked) == ["a"]


def test_all_faults_are_told_by_their_lines(tmp_path: Path) -> None:
    rows = 'text,label\n"a\nb",x\n,y\nc\nd,\n\n"e\nf",\ng,y\n'
    path = write(tmp_path / "a.csv", rows)
    with pytest.raises(DataError) as caught:
        load_dataset("mine", data=path)
    said = str(caught.value)
    assert said.startswith(f"{path}, line 4: ")
    for place in ("line 5: ", "lines 6, 8: "):
        assert place in said
    assert "\n" not in said
    assert caught.value.row == 4
    with pytest.raises(DataError, match=r"line 4: .*line 5: ") as caught:
        texts_of(path)


def test_of_many_faults_the_first_twenty_are_told(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label\n" + "a,\n" * 30 + "b,x\n")
    lines = ", ".join(map(str, range(2, 22)))
    with pytest.raises(DataError, match=rf"lines {lines}: .*10 faults more") as caught:
        load_dataset("mine", data=path)
    assert "22" not in str(caught.value).removeprefix(str(path))
    pq.write_table(
        pa.table({"text": ["a", "b", "c"], "label": ["x", None, None]}), tmp_path / "a.parquet"
    )
    with pytest.raises(DataError, match="rows 2, 3: "):
        load_dataset("mine", data=tmp_path / "a.parquet")


def test_every_unknown_label_is_told_with_one_remedy(tmp_path: Path) -> None:
    names = [f"a class of some length {number}" for number in range(20)]
    rows = "".join(f"a,other {number}\n" for number in range(20))
    path = write(tmp_path / "a.csv", "text,label\n" + rows)
    with pytest.raises(DataError) as caught:
        load_dataset("mine", data=path, label_names=names)
    said = str(caught.value)
    assert all(f"line {number}: " in said for number in range(2, 22))
    assert said.count(names[0]) == 1


def test_a_file_of_lines_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("fine\n".encode("utf-16-le"))
    with pytest.raises(DataError, match=r"lines 1, 2: "):
        texts_of(path)


class TestLabels:
    """What a label says, whatever file it is in."""

    def load(self, folder: Path, cells: list[object], kind: str, **options: object) -> TextDataset:
        texts = [f"t {index}" for index in range(len(cells))]
        path = write_columns(folder / f"mine.{kind}", texts, cells)
        return load_dataset("mine", data=path, **options)  # type: ignore[arg-type]

    KINDS = pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])

    @KINDS
    @pytest.mark.parametrize(
        ("cells", "names"),
        [
            ([True, False, True], ("False", "True")),
            (["TRUE", "false", "True"], ("False", "True")),
            (["1.10", "1.2", "1.1"], ("1.1", "1.10", "1.2")),
            (["01", "1", "10"], ("01", "1", "10")),
            (["+1", "-1"], ("+1", "-1")),
            (["2.0", "1.0", "1.0"], ("1", "2")),
            (["None", "NA", "None"], ("NA", "None")),
            ([3, 10, 3], ("3", "10")),
        ],
    )
    def test_one_rule_for_every_format(
        self, tmp_path: Path, kind: str, cells: list[object], names: tuple[str, ...]
    ) -> None:
        assert self.load(tmp_path, cells, kind).task.label_names == names

    @KINDS
    def test_rows_without_label_are_refused_or_left_out(self, tmp_path: Path, kind: str) -> None:
        cells: list[object] = ["x", None, "NaN", "null", " ", "\u200b", "y"]
        with pytest.raises(
            DataError, match=r"s (2, 3, 4, 5, 6|3, 4, 5, 6, 7): .*--skip-unlabelled"
        ):
            self.load(tmp_path, cells, kind)
        dataset = self.load(tmp_path, cells, kind, columns=LabelledColumns(skip_unlabelled=True))
        assert dataset.row_ids.tolist() == [0, 6]
        assert dataset.source.endswith("(rows without label left out: 5)")

    def test_a_json_key_that_is_not_there_is_a_label_that_is_missing(self, tmp_path: Path) -> None:
        rows = '{"text":"a","label":1}\n{"text":"b"}\n{"text":"c","label":0}\n'
        path, given = write(tmp_path / "a.jsonl", rows), LabelledColumns(skip_unlabelled=True)
        assert load_dataset("mine", data=path, columns=given).row_ids.tolist() == [0, 2]

    ALIKE = ("Login", "login", "login", "l\u200bogin", "\ufefflogin", "\uff4cogin", "LOGIN")
    OTHERS = ("caf\u00e9", "cafe\u0301", "caf\u00e9", "a b", "a\u00a0b", "a b")

    @KINDS
    def test_look_alikes_are_told_and_joined(self, tmp_path: Path, kind: str) -> None:
        cells = [*self.ALIKE, *self.OTHERS]
        told = self.load(tmp_path, list(cells), kind).look_alikes()
        assert len(told) == 3
        assert all("--fold-labels" in each for each in told)
        assert r"l\u200bogin" in " ".join(told)
        dataset = self.load(tmp_path, list(cells), kind, fold_labels=True)
        assert dataset.task.label_names == ("a b", "caf\u00e9", "login")
        assert np.bincount(dataset.labels).tolist() == [3, 3, 7]
        assert dataset.look_alikes() == []
        assert dataset.label_mapping["\uff4cogin"] == "login"
        assert "login 7" in dataset.class_words

    def test_a_trained_model_takes_what_looks_like_its_classes(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.csv", "text,label\na,L\u200bogin\nb,1\nc,billing\nd,True\n")
        dataset = load_labelled(
            "mine", data=path, label_names=("billing", "login"), pairs=False, reader="the run reads"
        )
        assert dataset.labels.tolist() == [1, 1, 0, 1]
        assert dataset.label_mapping == {"L\u200bogin": "login", "1": "login", "True": "login"}

    def test_of_two_classes_that_look_alike_none_is_guessed(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.csv", "text,label\na,Login\nb,LOGIN\n")
        with pytest.raises(DataError, match="line 3: "):
            load_dataset("mine", data=path, label_names=("Login", "login"), min_classes=1)


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("Stra\u00dfe", "STRASSE", True),
        ("\u200fa\u00adb", "ab", True),
        (" a \u2003 b", "a b", True),
        ("a\ufe0f", "a", True),
        ("a", "b", False),
        ("\u0430", "a", False),  # other letters are other words
    ],
)
def test_what_looks_alike(one: str, other: str, alike: bool) -> None:
    assert (folded(one) == folded(other)) is alike


CR_FILES = {
    "a.csv": 'text,label\r"no, never",x\rfine,y\r',
    "a.tsv": "text\tlabel\rno, never\tx\rfine\ty",
    "a.jsonl": '{"text": "no, never", "label": "x"}\r{"text": "fine", "label": "y"}\r',
    "a.txt": "no, never\rfine\r",
}


@pytest.mark.parametrize("name", CR_FILES)
def test_lines_may_end_in_carriage_returns(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, CR_FILES[name])
    assert texts_of(path) == ["no, never", "fine"]
    if name != "a.txt":
        assert load_dataset("mine", data=path).first == ("no, never", "fine")


def test_a_carriage_return_within_a_row_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label\na,x\rb,y\n")
    with pytest.raises(DataError, match="carriage return") as caught:
        load_dataset("mine", data=path)
    assert caught.value.row == 2


def test_blanks_before_a_quote_are_seen_in_any_row(tmp_path: Path) -> None:
    rows = "".join(f"text {number}, y\n" for number in range(300))
    path = write(tmp_path / "a.csv", f'text, label\n{rows}"a, b", "x"\n')
    assert load_dataset("mine", data=path).task.label_names == ("x", "y")
    quoted = write(tmp_path / "b.csv", f'note,text\n{rows}a,"he said, ""no"""\n')
    assert texts_of(quoted)[-1] == 'he said, "no"'


TABLES_WITH_A_BAD_ROW = {
    "a.csv": 'text,label\nfine,x\n"{}\nand more",x\ngood,y\n',
    "b.csv": "text,label\nfine,x\n{},x\ngood,y\n",
    "a.tsv": "text\tlabel\nfine\tx\n{}\tx\ngood\ty\n",
    "a.jsonl": '{{"text": "fine"}}\n{{"text": "{}"}}\n{{"text": "good"}}\n',
}


@pytest.mark.parametrize("bad", [b"caf\xe9", b"a\0b", b"x" * 200_000, b"y" * 1_500_000])
@pytest.mark.parametrize("name", TABLES_WITH_A_BAD_ROW)
def test_a_bad_row_of_a_table_can_be_left_out(tmp_path: Path, name: str, bad: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(TABLES_WITH_A_BAD_ROW[name].format("BAD").encode().replace(b"BAD", bad))
    row = 2 if name == "a.jsonl" else 3
    with pytest.raises(DataError, match="--skip-bad") as caught:
        texts_of(path)
    assert caught.value.row == row
    taken = of_file(path, pairs=False, columns=TextColumns(), skip_bad=True)
    assert list(taken.read()) == [(0, "fine"), (2, "good")]
    assert (taken.total, taken.n_left_out) == (2, 1)


@pytest.mark.parametrize("bad", [b"{text", b"[1]", b'{"text": "caf\xe9"}', b"9" * 5_000])
def test_a_bad_first_line_is_a_bad_line_like_any_other(tmp_path: Path, bad: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\n%s\n{"text": "fine"}\n{"text": 5}\n{"text": "good"}\n' % bad)
    with pytest.raises(DataError, match=r"line 2: .*line 4: ") as caught:
        texts_of(path)
    assert caught.value.row == 2
    taken = texts_of(path, skip_bad=True)
    assert taken == ["fine", "good"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with a name here")
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet", "a.txt"])
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(DataError):
        texts_of(tmp_path / name)
    with pytest.raises(DataError):
        load_dataset("mine", data=tmp_path / name)


@pytest.mark.parametrize("name", ["null", "nan", "NaN"])
def test_a_class_called_missing_is_refused_and_how_to_keep_it_is_said(
    tmp_path: Path, name: str
) -> None:
    path = write(tmp_path / "a.csv", f"text,label\na,x\nb,{name}\n")
    with pytest.raises(DataError, match="rename it if it is a class") as caught:
        load_dataset("mine", data=path)
    assert caught.value.row == 3
    known = load_dataset("mine", data=path, label_names=["x", name])
    assert known.labels.tolist() == [0, 1]
