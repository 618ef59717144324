"""Bad input stops with file, row and remedy."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dimec.core.errors import DataError
from dimec.data import MAX_CELL_CHARACTERS, load_dataset

HEAD = b"text,label\n"
LONG = "x" * (MAX_CELL_CHARACTERS + 1)

# name: (file, contents, row in the message or None, what the message says, its remedy)
CASES: dict[str, tuple[str, bytes, int | None, str, str]] = {
    "no text column": ("a.csv", b"foo,label\na,1\n", None, "'foo', 'label'", "--text-column"),
    "no label column": ("a.csv", b"text,foo\na,1\n", None, "as a label", "--label-column"),
    "two label columns": ("a.csv", b"text,label,class\na,1,1\n", None, "several", "--label-column"),
    "two text columns": ("a.csv", b"text,review,label\na,b,1\n", None, "several", "--text-column"),
    "a column twice": ("a.csv", b"text,text,label\na,b,1\n", None, "2 times", "rename"),
    "two pairs": (
        "a.csv",
        b"premise,hypothesis,text1,text2,label\na,b,c,d,1\n",
        None,
        "several pairs",
        "--text-column",
    ),
    "no header": ("a.csv", b"good day,1\nbad day,0\n", None, "'good day', '1'", "first line"),
    "label missing": ("a.csv", HEAD + b"a,1\nb,\n", 3, "label is missing", "remove the row"),
    "label null": ("a.jsonl", b'{"text": "a", "label": null}\n', 1, "missing", "fill it in"),
    "label -1": ("a.csv", HEAD + b"a,1\nb,-1\n", 3, "unlabelled", "give labelled rows"),
    "label -1.0": ("a.jsonl", b'{"text": "a", "label": -1.0}\n', 1, "unlabelled", "labelled rows"),
    "label with a fraction": ("a.csv", HEAD + b"a,1\nb,0.5\n", 3, "no whole number", "round"),
    "label in exponents": ("a.csv", HEAD + b"a,1e-3\n", 2, "no whole number", "round"),
    "typed fraction": ("a.jsonl", b'{"text": "a", "label": 2.5}\n', 1, "2.5", "round"),
    "infinite label": ("a.jsonl", b'{"text": "a", "label": Infinity}\n', 1, "inf", "classes"),
    "label a list": ("a.jsonl", b'{"text": "a", "label": [1]}\n', 1, "[1]", "labels are classes"),
    "empty text": ("a.csv", HEAD + b"a,1\n,0\n", 3, "'text' is empty", "fill it in"),
    "blank text": ("a.csv", HEAD + b"a,1\n \xe2\x80\x83,0\n", 3, "'text' is empty", "remove"),
    "text null": ("a.jsonl", b'{"text": null, "label": 1}\n', 1, "empty", "fill it in"),
    "text a number": ("a.jsonl", b'{"text": 5, "label": 1}\n', 1, "no text", "--text-column"),
    "half a pair": (
        "a.csv",
        b"premise,hypothesis,label\na,b,1\nc,,0\n",
        3,
        "'hypothesis' is empty",
        "fill it in",
    ),
    "a single class": ("a.csv", HEAD + b"a,1\nb,1\n", None, "same label ('1')", "--label-column"),
    "texts as labels": (
        "a.csv",
        HEAD + b"".join(b"a,label number %d\n" % i for i in range(30)),
        12,
        "30 different labels in 30 rows",
        "--label-column",
    ),
    "too many classes": (
        "a.csv",
        HEAD + b"".join(b"a,l%d\n" % (i % 1001) for i in range(5000)),
        1002,
        "more than 1,000 different labels",
        "--label-column",
    ),
    "too few fields": ("a.csv", HEAD + b"a,1\nb\n", 3, "1 fields where the header has 2", "mend"),
    "too many fields": ("a.tsv", b"text\tlabel\na\t1\t\n", 2, "3 fields", "mend"),
    "row after a long cell": ("a.csv", HEAD + b'"a\nb\n",1\n\nc\n', 6, "1 fields", "mend"),
    "NUL bytes": ("a.csv", HEAD + b"a,1\nb\0,0\n", 3, "NUL", "UTF-8"),
    "UTF-16": ("a.tsv", "text\tlabel\na\t1\n".encode("utf-16"), 1, "NUL", "UTF-8"),
    "Latin-1": ("a.csv", HEAD + b"a,1\ncaf\xe9,0\n", 3, "no UTF-8 text (byte 4", "save the file"),
    "broken JSON": ("a.jsonl", b'{"text": "a", "label": 1}\n{"text":\n', 2, "JSON", "one object"),
    "JSON too deep": ("a.jsonl", b'{"text":' + b"[" * 200_000, 1, "no valid JSON", "one object"),
    "JSON array": ("a.json", b'[\n{"text": "a"}]', 1, "JSON array", "one object per line"),
    "JSON number": ("a.jsonl", b"5\n", 1, "holds 5", "one JSON object per line"),
    "JSON without a key": (
        "a.jsonl",
        b'{"text": "a", "label": 1}\n\n{"text": "b"}\n',
        3,
        "no 'label'",
        "add it",
    ),
    "half a character": (
        "a.jsonl",
        b'{"text": "a \\ud800", "label": 1}\n',
        1,
        "surrogate",
        "write the file again",
    ),
    "broken parquet": ("a.parquet", b"PAR1 no more", None, "no readable parquet", "write it again"),
    "empty file": ("a.csv", b"", None, "empty", "header line"),
    "blank file": ("a.tsv", b"\n\n", None, "empty", "header line"),
    "empty JSON lines": ("a.jsonl", b"\n", None, "empty", "one JSON object per line"),
    "header alone": ("a.csv", HEAD, None, "no rows", "under its header"),
    "unknown suffix": ("a.xlsx", b"", None, ".csv, .tsv, .jsonl", "convert or rename"),
    "plain text": ("a.txt", b"words", None, "'.txt' is not one of", "convert or rename"),
    "long CSV cell": ("a.csv", HEAD + f"{LONG},1\n".encode(), 2, "100,000", "cut it"),
    "long TSV cell": ("a.tsv", f"text\tlabel\n{LONG}\t1\n".encode(), 2, "100,001", "cut it"),
    "endless cell": ("a.csv", HEAD + b"a,1\n" + b"y" * 10_000_000, 3, "100,000", "shorten"),
    "endless JSON cell": (
        "a.jsonl",
        b'{"text": "' + b"y" * 10_000_000 + b'", "label": 1}',
        1,
        "100,000",
        "shorten",
    ),
    "open quote": ("a.csv", HEAD + b'a,1\n"b,0\nc,1\n', 3, "quote", "close the quote"),
    "open quote, long file": (
        "a.csv",
        HEAD + b'a,1\n"b,0\n' + b"c,1\n" * 1_000_000,
        3,
        "quote",
        "close the quote",
    ),
    "stray quote": ("a.csv", HEAD + b'"a" b,1\n', 2, "quoting is broken", "double quotes"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_stops_with_file_row_and_remedy(tmp_path: Path, case: str) -> None:
    name, contents, row, says, remedy = CASES[case]
    path = tmp_path / name
    path.write_bytes(contents)
    with pytest.raises(DataError) as caught:
        load_dataset("mine", data=path)
    message = str(caught.value)
    place = f"{path}, line {row}: " if row else f"{path}: "
    assert message.startswith(place)
    assert says in message
    assert remedy in message
    assert len(message) < len(str(path)) + 600
    assert caught.value.exit_code == 2
    assert caught.value.row == row


REGISTRY_CASES: dict[str, tuple[str, str, str, int | None, str, str]] = {
    "unknown name": ("mnli", "a.tsv", "premise\thypothesis\tlabel\na\tb\t-\n", 2, "'-'", "neutral"),
    "code out of range": ("sst2", "a.csv", "text,label\na,1\nb,2\n", 3, "'2'", "positive (1)"),
    "GLUE test file": ("sst2", "a.tsv", "index\tsentence\n0\ta\n", None, "a label", "--label"),
    "no pair": ("mrpc", "a.csv", "text,label\na,1\n", None, "no pair of columns", "--pair-column"),
    "a pair for one text": (
        "sst2",
        "a.csv",
        "sentence1,sentence2,label\na,,1\nb,c,0\n",
        3,
        "one text per row",
        "--text-column",
    ),
    "a pair without seconds": (
        "rte",
        "a.csv",
        "sentence1,sentence2,label\na,,1\nb,,0\n",
        2,
        "'sentence2' is empty",
        "fill it in",
    ),
    "ragged QQP of one's own": (
        "qqp",
        "a.tsv",
        "question1\tquestion2\tis_duplicate\na\tb\n",
        2,
        "2 fields",
        "mend",
    ),
}


@pytest.mark.parametrize("case", REGISTRY_CASES)
def test_what_a_registry_task_refuses(tmp_path: Path, case: str) -> None:
    task, name, contents, row, says, remedy = REGISTRY_CASES[case]
    path = tmp_path / name
    path.write_bytes(contents.encode())
    with pytest.raises(DataError) as caught:
        load_dataset(task, data=path)
    message = str(caught.value)
    places = rf"{path}, lines? {row}[:,] " if row else f"{path}: "
    assert re.match(places, message)
    assert caught.value.row == row
    assert says in message
    assert remedy in message


def test_many_empty_questions_are_no_known_defect(tmp_path: Path) -> None:
    header = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
    path = tmp_path / "train.tsv"
    path.write_bytes((header + "0\t1\t2\tWho?\t\t0\n" * 30).encode())
    with pytest.raises(
        DataError, match=r"lines 22, .*, 31: .* is empty \(like that of 20 rows before\)"
    ):
        load_dataset("qqp", data=path)


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
    ],
)
def test_parquet_rows_count_from_one(
    tmp_path: Path, columns: dict[str, list[object]], row: int | None, says: str
) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table(columns), path)
    with pytest.raises(DataError, match=says) as caught:
        load_dataset("mine", data=path)
    assert caught.value.row == row


def test_a_parquet_file_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["a", "b"] * 1000, "label": [0, 1] * 1000}), path)
    whole = path.read_bytes()
    path.write_bytes(whole[:20] + b"\xff" * 40 + whole[60:])
    with pytest.raises(DataError, match="no readable parquet file"):
        load_dataset("mine", data=path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"gone\.csv: there is no such file or folder; check --data"
    ):
        load_dataset("sst2", data=tmp_path / "gone.csv")


@pytest.mark.parametrize("option", ["text_column", "pair_column", "label_column"])
def test_a_named_column_that_is_not_there(tmp_path: Path, option: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "a", "label": 1}))
    with pytest.raises(DataError, match=f"no column 'nope'.*'text', 'label'.*--{option[:4]}"):
        load_dataset("mine", data=path, **{option: "nope"})  # type: ignore[arg-type]
