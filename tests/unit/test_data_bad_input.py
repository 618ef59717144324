"""Bad input stops with file, row and remedy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dimec.core.errors import DataError
from dimec.core.options import LabelledColumns
from dimec.data import load_dataset
from dimec.data.delimited import MAX_CELL_CHARACTERS

HEAD = b"text,label\n"
LONG = "x" * (MAX_CELL_CHARACTERS + 1)
ENDLESS = b"y" * 10_000_000
TEXT, LABEL = "--text-column", "--label-column"
WORDS = [b"label number %d" % number for number in range(30)]
MANY = [b"l%d" % (number % 1001) for number in range(5000)]

# name: (file, contents, row in the message or None, what the message names)
CASES: dict[str, tuple[str, bytes, int | None, str]] = {
    "no text column": ("a.csv", b"foo,label\na,1\n", None, TEXT),
    "no label column": ("a.csv", b"text,foo\na,1\n", None, LABEL),
    "two label columns": ("a.csv", b"text,label,class\na,1,1\n", None, LABEL),
    "two text columns": ("a.csv", b"text,review,label\na,b,1\n", None, TEXT),
    "a column twice": ("a.csv", b"text,text,label\na,b,1\n", None, "2 times"),
    "two pairs": ("a.csv", b"premise,hypothesis,text1,text2,label\na,b,c,d,1\n", None, TEXT),
    "no header": ("a.csv", b"good day,1\nbad day,0\n", None, "'good day', '1'"),
    "label missing": ("a.csv", HEAD + b"a,1\nb,\n", 3, "label is missing"),
    "label null": ("a.jsonl", b'{"text": "a", "label": null}\n', 1, "missing"),
    "label -1": ("a.csv", HEAD + b"a,1\nb,-1\n", 3, "unlabelled"),
    "label -1.0": ("a.jsonl", b'{"text": "a", "label": -1.0}\n', 1, "unlabelled"),
    "label with a fraction": ("a.csv", HEAD + b"a,1\nb,0.5\n", 3, "no whole number"),
    "label in exponents": ("a.csv", HEAD + b"a,1e-3\n", 2, "no whole number"),
    "typed fraction": ("a.jsonl", b'{"text": "a", "label": 2.5}\n', 1, "2.5"),
    "infinite label": ("a.jsonl", b'{"text": "a", "label": Infinity}\n', 1, "inf"),
    "label half a character": ("a.jsonl", b'{"text": "a", "label": "\\ud800"}\n', 1, "ud800"),
    "label a list": ("a.jsonl", b'{"text": "a", "label": [1]}\n', 1, "[1]"),
    "empty text": ("a.csv", HEAD + b"a,1\n,0\n", 3, "'text' is empty"),
    "blank text": ("a.csv", HEAD + b"a,1\n \xe2\x80\x83,0\n", 3, "'text' is empty"),
    "text null": ("a.jsonl", b'{"text": null, "label": 1}\n', 1, "empty"),
    "text a number": ("a.jsonl", b'{"text": 5, "label": 1}\n', 1, "--text-column"),
    "half a pair": ("a.csv", b"premise,hypothesis,label\na,b,1\nc,,0\n", 3, "'hypothesis'"),
    "a single class": ("a.csv", HEAD + b"a,1\nb,1\n", None, LABEL),
    "texts as labels": ("a.csv", HEAD + b"".join(b"a,%s\n" % each for each in WORDS), 12, LABEL),
    "too many classes": ("a.csv", HEAD + b"".join(b"a,%s\n" % each for each in MANY), 1002, LABEL),
    "too few fields": ("a.csv", HEAD + b"a,1\nb\n", 3, "1 fields where the header has 2"),
    "too many fields": ("a.tsv", b"text\tlabel\na\t1\t\n", 2, "3 fields"),
    "row after a long cell": ("a.csv", HEAD + b'"a\nb\n",1\n\nc\n', 6, "1 fields"),
    "NUL bytes": ("a.csv", HEAD + b"a,1\nb\0,0\n", 3, "NUL"),
    "UTF-16": ("a.tsv", "text\tlabel\na\t1\n".encode("utf-16"), 1, "NUL"),
    "Latin-1": ("a.csv", HEAD + b"a,1\ncaf\xe9,0\n", 3, "no UTF-8 text (byte 4"),
    "broken JSON": ("a.jsonl", b'{"text": "a", "label": 1}\n{"text":\n', 2, "JSON"),
    "JSON too deep": ("a.jsonl", b'{"text":' + b"[" * 200_000, 1, "no valid JSON"),
    "JSON array": ("a.json", b'[\n{"text": "a"}]', 1, "JSON array"),
    "JSON number": ("a.jsonl", b"5\n", 1, "holds 5"),
    "JSON without a key": (
        "a.jsonl",
        b'{"text": "a", "label": 1}\n\n{"text": "b"}\n',
        3,
        "'label'",
    ),
    "half a character": ("a.jsonl", b'{"text": "a \\ud800", "label": 1}\n', 1, "surrogate"),
    "broken parquet": ("a.parquet", b"PAR1 no more", None, "no readable parquet"),
    "empty file": ("a.csv", b"", None, "empty"),
    "blank file": ("a.tsv", b"\n\n", None, "empty"),
    "empty JSON lines": ("a.jsonl", b"\n", None, "empty"),
    "header alone": ("a.csv", HEAD, None, "no rows"),
    "unknown suffix": ("a.xlsx", b"", None, ".csv, .tsv, .jsonl"),
    "plain text": ("a.txt", b"words", None, "'.txt' is not one of"),
    "long CSV cell": ("a.csv", HEAD + f"{LONG},1\n".encode(), 2, "100,000"),
    "long TSV cell": ("a.tsv", f"text\tlabel\n{LONG}\t1\n".encode(), 2, "100,001"),
    "endless cell": ("a.csv", HEAD + b"a,1\n" + ENDLESS, 3, "100,000"),
    "endless JSON cell": ("a.jsonl", b'{"text": "%s", "label": 1}' % ENDLESS, 1, "100,000"),
    "open quote": ("a.csv", HEAD + b'a,1\n"b,0\nc,1\n', 3, "quote"),
    "open quote, long file": ("a.csv", HEAD + b'a,1\n"b,0\n' + b"c,1\n" * 1_000_000, 3, "quote"),
    "stray quote": ("a.csv", HEAD + b'"a" b,1\n', 2, "quoting is broken"),
}


def refused(task: str, path: Path, row: int | None, named: str) -> None:
    """Load a file that is refused in one sentence, which names its place."""
    with pytest.raises(DataError) as caught:
        load_dataset(task, data=path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert f" {row}: " in message or f" {row}, " in message or not row
    assert named in message
    assert len(message) < len(str(path)) + 600
    assert (caught.value.exit_code, caught.value.row) == (2, row)


@pytest.mark.parametrize("case", CASES)
def test_bad_input_stops_with_file_and_row(tmp_path: Path, case: str) -> None:
    name, contents, row, named = CASES[case]
    (tmp_path / name).write_bytes(contents)
    refused("mine", tmp_path / name, row, named)


PAIRS, QQP = "sentence1,sentence2,label", "question1\tquestion2\tis_duplicate"
REGISTRY_CASES: dict[str, tuple[str, str, str, int | None, str]] = {
    "unknown name": ("mnli", "a.tsv", "premise\thypothesis\tlabel\na\tb\t-\n", 2, "'-'"),
    "code out of range": ("sst2", "a.csv", "text,label\na,1\nb,2\n", 3, "'2'"),
    "GLUE test file": ("sst2", "a.tsv", "index\tsentence\n0\ta\n", None, "--label"),
    "no pair": ("mrpc", "a.csv", "text,label\na,1\n", None, "--pair-column"),
    "a pair for one text": ("sst2", "a.csv", f"{PAIRS}\na,,1\nb,c,0\n", 3, "--text-column"),
    "a pair without seconds": ("rte", "a.csv", f"{PAIRS}\na,,1\nb,,0\n", 2, "'sentence2' is empty"),
    "ragged QQP of one's own": ("qqp", "a.tsv", f"{QQP}\na\tb\n", 2, "2 fields"),
}


@pytest.mark.parametrize("case", REGISTRY_CASES)
def test_what_a_registry_task_refuses(tmp_path: Path, case: str) -> None:
    task, name, contents, row, named = REGISTRY_CASES[case]
    (tmp_path / name).write_bytes(contents.encode())
    refused(task, tmp_path / name, row, named)


def test_many_empty_questions_are_no_known_defect(tmp_path: Path) -> None:
    header = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
    path = tmp_path / "train.tsv"
    path.write_bytes((header + "0\t1\t2\tWho?\t\t0\n" * 30).encode())
    refused("qqp", path, 22, "31: ")


@pytest.mark.parametrize(
    ("columns", "row", "says"),
    [
        ({"text": ["a", "  "], "label": [0, 1]}, 2, "'text' is empty"),
        ({"text": ["a", None], "label": [0, 1]}, 2, "'text' is empty"),
        ({"text": ["a", "b"], "label": [0, None]}, 2, "label is missing"),
        ({"text": ["a", "b"], "label": [0.0, 0.25]}, 2, "no whole number"),
        ({"text": ["a", "b"], "label": [0.0, float("nan")]}, 2, "label is missing"),
        ({"text": [1, 2], "label": [0, 1]}, 1, "no text"),
        ({"text": [b"a", b"b"], "label": [0, 1]}, 1, "no text"),
        ({"text": ["a", LONG], "label": [0, 1]}, 2, "100,001 characters"),
        ({"text": ["a", "z" * 10_000_000], "label": [0, 1]}, 2, "10,000,000 characters"),
        ({"text": [], "label": []}, None, "no rows"),
        ({"text": ["a"], "label": pa.array([2**60], pa.timestamp("ms"))}, 1, "parquet"),
    ],
)
def test_parquet_rows_count_from_one(
    tmp_path: Path, columns: dict[str, Any], row: int | None, says: str
) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table(columns), path)
    refused("mine", path, row, says)


def test_a_parquet_file_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["a", "b"] * 1000, "label": [0, 1] * 1000}), path)
    whole = path.read_bytes()
    path.write_bytes(whole[:20] + b"\xff" * 40 + whole[60:])
    refused("mine", path, 1, "parquet")


def test_a_missing_file(tmp_path: Path) -> None:
    refused("sst2", tmp_path / "gone.csv", None, "--data")


@pytest.mark.parametrize("option", ["text_column", "pair_column", "label_column"])
def test_a_named_column_that_is_not_there(tmp_path: Path, option: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "a", "label": 1}))
    with pytest.raises(DataError, match=f"'nope'.*'text', 'label'.*--{option[:4]}"):
        load_dataset("mine", data=path, columns=LabelledColumns(**{option: "nope"}))
