"""``dimec classify`` in processes of its own, killed where that matters."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.commands import COMMAND, Here, dimec
from tests.forked import SERVES
from tests.misbehaving import dead_url
from tests.servers import tier_server, wait_for

from dimec.bundle import Bundle
from dimec.bundle.engines import sessions
from dimec.cli.app import app
from dimec.core.errors import InputError, MissingExtraError
from dimec.data import reviews
from dimec.runtime.device.device import Device
from dimec.runtime.device.lines import MARK
from dimec.runtime.device.options import DeviceSettings

TEXTS = list(reviews(40, seed=11).first)
FIELDS = {
    *("index", "label", "confidence", "probabilities", "tier", "layer", "cost", "latency_ms"),
    *("degraded", "alarm"),
}


def lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def labels(tiny_bundle: Bundle) -> list[str]:
    with Device(tiny_bundle) as device:
        return [answer.label for answer in device.classify(TEXTS)]


def test_arguments_a_file_and_stdin_say_the_same(
    tiny_bundle: Bundle, labels: list[str], tmp_path: Path, here: Here
) -> None:
    folder = tiny_bundle.folder
    (tmp_path / "texts.txt").write_text("\ufeff" + "\r\n".join(TEXTS))
    (tmp_path / "texts.jsonl").write_text(
        "".join(json.dumps({"id": 1, "text": text}) + "\n" for text in TEXTS)
    )
    quoted = "".join(f'1,"{text}"\n' for text in TEXTS)
    (tmp_path / "texts.csv").write_text("id,body\n" + quoted)
    (tmp_path / "texts.tsv").write_text("sentence\n" + "".join(f"{text}\n" for text in TEXTS))
    ways: list[Sequence[object]] = [
        TEXTS,
        ["--file", tmp_path / "texts.txt"],
        ["--file", tmp_path / "texts.jsonl"],
        ["--file", tmp_path / "texts.csv", "--text-column", "BODY"],
        ["--file", tmp_path / "texts.tsv"],
    ]
    printed = [here("classify", folder, *arguments, "--json").out for arguments in ways]
    for dash in (["-"], []):
        printed.append(dimec("classify", folder, *dash, "--json", stdin="\n".join(TEXTS)).stdout)
    for answers in map(lines, printed):
        assert [answer["index"] for answer in answers] == list(range(len(TEXTS)))
        assert [answer["label"] for answer in answers] == labels
        assert all(set(answer) == FIELDS for answer in answers)
        assert {answer["degraded"] for answer in answers} == {None}
        for answer in answers:
            probabilities = answer["probabilities"]
            assert isinstance(probabilities, dict)
            assert list(probabilities) == ["negative", "positive"]
            assert sum(probabilities.values()) == pytest.approx(1, abs=1e-5)
            assert max(probabilities, key=probabilities.__getitem__) == answer["label"]


def test_people_get_a_line_a_text_and_a_summary(tiny_bundle: Bundle, here: Here) -> None:
    dead = ("--edge", dead_url(), "--cloud", dead_url())
    said = here("classify", tiny_bundle.folder, *TEXTS, *dead)
    assert "40 texts classified: mobile 100%, edge 0%, cloud 0%; cost" in said.err
    answered = [line for line in said.out.splitlines() if " λ " in line]
    assert len(answered) == 40


def test_servers_and_a_token_file(tiny_bundle: Bundle, labels: list[str], tmp_path: Path) -> None:
    token = "a-token-that-is-long-enough"
    (tmp_path / "token").write_text(token + "\n")
    with tier_server("edge", tiny_bundle.folder, environment={"DIMEC_TOKEN": token}) as server:
        options = ("--edge", server.url, "--json", "--deadline-ms", "60000")
        by_file = dimec(
            "classify", tiny_bundle.folder, *TEXTS, *options, "--token-file", tmp_path / "token"
        )
        by_variable = dimec("classify", tiny_bundle.folder, *TEXTS, *options, DIMEC_TOKEN=token)
    for done in (by_file, by_variable):
        answers = lines(done.stdout)
        assert [answer["label"] for answer in answers] == labels
        assert {answer["degraded"] for answer in answers} == {None}


def test_a_file_of_metrics_for_prometheus(tiny_bundle: Bundle, tmp_path: Path, here: Here) -> None:
    folder, file = tiny_bundle.folder, tmp_path / "dimec.prom"
    said = here("classify", folder, *TEXTS, "--json", "--metrics-file", file).out
    answered = Counter(str(answer["tier"]) for answer in lines(said))
    found = {
        sample.labels["tier"]: sample.value
        for family in text_string_to_metric_families(file.read_text())
        for sample in family.samples
        if sample.name == "dimec_device_answers_total"
    }
    assert found == {tier: answered[tier] for tier in ("mobile", "edge", "cloud")}
    nowhere = tmp_path / "none" / "dimec.prom"
    refused = here("classify", folder, "fine", "--metrics-file", nowhere, code=2).err
    assert "--metrics-file" in refused
    assert len(refused.strip().splitlines()) == 1


def test_a_killed_classification_goes_on_and_answers_every_text_once(
    tiny_bundle: Bundle, tmp_path: Path
) -> None:
    texts = list(reviews(2_500, seed=2).first)
    file, out = tmp_path / "texts.txt", tmp_path / "answers.jsonl"
    file.write_text("".join(f"{text}\n" for text in texts))
    command = ["classify", tiny_bundle.folder, "--file", file, "--out", out]
    reached = 0
    for _ in range(3):
        process = SERVES.start(*command)
        end = time.monotonic() + 240
        while out.read_bytes().count(b"\n") <= reached + 300 if out.exists() else True:
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.002)
        process.kill()
        process.wait()
        reached = out.read_bytes().count(b"\n")
        assert reached < len(texts)
        assert out.with_name(out.name + MARK).exists()
        with out.open("ab") as torn:
            torn.write(b'{"index": 3, "lab')
    other = tmp_path / "other.txt"
    other.write_text("something else\n")
    refused = dimec("classify", tiny_bundle.folder, "--file", other, "--out", out, code=2)
    assert "was begun with other texts" in refused.stderr
    assert f"Going on after {reached:,} answers." in dimec(*command).stderr
    answers = lines(out.read_text())
    assert [answer["index"] for answer in answers] == list(range(len(texts)))
    with Device(tiny_bundle) as device:
        expected = [answer.label for answer in device.classify(texts)]
    assert [answer["label"] for answer in answers] == expected
    assert not out.with_name(out.name + MARK).exists()
    assert "is there and finished" in dimec(*command, code=2).stderr
    dimec("classify", tiny_bundle.folder, "fine", "--out", out, "--restart")
    assert len(lines(out.read_text())) == 1


def test_two_processes_do_not_write_one_file(tiny_bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    first = subprocess.Popen(
        [*COMMAND, "classify", str(tiny_bundle.folder), "-", "--out", str(out)],
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(out.with_name(out.name + MARK).exists, "the first has begun")
        second = dimec("classify", tiny_bundle.folder, "-", "--out", out, stdin="fine\n", code=2)
        assert "by another process" in second.stderr
    finally:
        first.communicate(b"fine\n")
    assert first.returncode == 0
    assert len(lines(out.read_text())) == 1


def test_bad_input_ends_with_one_sentence(tiny_bundle: Bundle, tmp_path: Path) -> None:
    def file(name: str, content: bytes) -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    out = tmp_path / "out.jsonl"
    cases: list[tuple[list[object], str]] = [
        ([], "nothing to classify"),
        (["-", "text"], "give it alone"),
        (["text", "--file", file("a.txt", b"x\n")], "give one of them"),
        (["text", "--restart"], "give --out too"),
        ([" "], "the command line, text 1: the text is empty"),
        (["--file", tmp_path / "none.txt"], "cannot be read"),
        (["--file", tmp_path], "cannot be read"),
        (["--file", file("empty.txt", b"")], "holds no text"),
        (["--file", file("b.txt", b"fine\n\nfine\n"), "--out", out], "line 2: the text is empty"),
        (["--file", file("c.txt", b"fine\n\xff\n"), "--out", out], "line 2: this is no UTF-8"),
        (["--file", file("d.csv", b"text,x\na,b\nc\n"), "--out", out], "line 3: the row has 1"),
        (["--file", file("e.csv", b"p,q\na,b\n")], "name it with --text-column"),
        (["--file", file("f.csv", b"text\na\n"), "--text-column", "body"], "no column 'body'"),
        (["--file", file("g.csv", b"text\na\n"), "--pair-column", "text"], "takes single texts"),
        (["--file", file("h.txt", b"a\n"), "--text-column", "x"], "read line by line"),
        (["--file", file("i.jsonl", b'{"text": 1}\n')], "which is no text"),
        (["x", "--edge", "edge"], "no URL"),
        (["x", "--token-file", tmp_path / "none"], "--token-file"),
        (["x", "--deadline-ms", "-1"], "--deadline-ms"),
        (["x", "--ca-file", tmp_path / "none", "--edge", "https://edge"], "TLS files"),
    ]
    for arguments, words in cases:
        with pytest.raises(InputError, match=re.escape(words)) as caught:
            app(["classify", str(tiny_bundle.folder), *map(str, arguments)], standalone_mode=False)
        assert "\n" not in str(caught.value)
    assert not out.exists()
    for folder, options in ((tmp_path, []), (tiny_bundle.folder, ["--edge", "edge"])):
        done = dimec("classify", folder, "x", *options, code=2)
        assert done.stdout == ""
        assert len(done.stderr.strip().splitlines()) == 1


def test_rows_without_text_can_be_left_out(tiny_bundle: Bundle, tmp_path: Path, here: Here) -> None:
    (tmp_path / "a.txt").write_text("fine\n\n  \ngood\n")
    (tmp_path / "b.csv").write_text('text,n\nfine,1\n"",2\n" ",3\ngood,4\n')
    for name in ("a.txt", "b.csv"):
        options = ("--file", tmp_path / name, "--skip-empty", "--json")
        said = here("classify", tiny_bundle.folder, *options).out
        assert [answer["index"] for answer in lines(said)] == [0, 3]


def test_an_engine_is_chosen(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, here: Here
) -> None:
    with Device(tiny_bundle, settings=DeviceSettings(engine="openvino")) as device:
        expected = device.classify(TEXTS)
    said = here("classify", tiny_bundle.folder, *TEXTS, "--engine", "openvino", "--json").out
    for told, answer in zip(lines(said), expected, strict=True):
        assert (told["label"], told["tier"]) == (answer.label, answer.tier)
        assert told["confidence"] == pytest.approx(answer.confidence, abs=1e-4)
    # None makes an import fail as if there were no such package
    monkeypatch.setitem(sys.modules, "openvino", None)
    sessions._openvino_core.cache_clear()
    with pytest.raises(MissingExtraError, match="openvino"):
        app(
            ["classify", str(tiny_bundle.folder), "x", "--engine", "openvino"],
            standalone_mode=False,
        )
