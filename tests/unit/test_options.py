"""Option records: one telling of each option, in Python and on the command line."""

from __future__ import annotations

import ast
import inspect
import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import BaseModel
from typer.testing import CliRunner

import dimec
from dimec import api
from dimec.cli.app import VERBS, app, load_verb
from dimec.cli.generate import HELP_ALL, add_verb
from dimec.cli.reference import page
from dimec.core.errors import OptionError
from dimec.core.guard_settings import GuardSettings
from dimec.core.options import checked, command_line, facts, flags_of
from dimec.corpus.options import BulkOptions
from dimec.costs.model import CostModel
from dimec.costs.options import ProfileOptions
from dimec.deploying.options import ExportOptions, PlanOptions, WebOptions
from dimec.evaluation.options import EvaluateOptions, FrontierOptions
from dimec.runs.compressed import CompressOptions
from dimec.runs.run import FitOptions
from dimec.runtime.device.options import ClassifyOptions
from dimec.runtime.server.settings import ServeOptions
from dimec.studies.options import ReportOptions, StudyOptions
from tests import keywords

RECORDS: dict[str, type[BaseModel]] = {
    "fit": FitOptions,
    "evaluate": EvaluateOptions,
    "frontier": FrontierOptions,
    "plan": PlanOptions,
    "export": ExportOptions,
    "serve": ServeOptions,
    "classify": ClassifyOptions,
    "bulk": BulkOptions,
    "compress": CompressOptions,
    "study": StudyOptions,
    "report": ReportOptions,
    "web": WebOptions,
    "profile": ProfileOptions,
}


@pytest.mark.parametrize("verb", VERBS)
def test_the_basic_help_is_short_and_has_an_example(verb: str) -> None:
    shown = CliRunner().invoke(app, [verb, "--help"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0
    listed = [line for line in shown.stdout.splitlines() if line.lstrip("│* ").startswith("--")]
    assert 1 <= len(listed) <= 10, listed
    assert "Example:" in shown.stdout


@pytest.mark.parametrize("verb", RECORDS)
def test_the_full_help_shows_every_option_of_the_record(verb: str) -> None:
    shown = CliRunner().invoke(app, [verb, HELP_ALL], env={"COLUMNS": "200"})
    assert shown.exit_code == 0
    record = RECORDS[verb]
    for name, field in record.model_fields.items():
        assert field.description, name
        if not facts(field).hidden:
            assert flags_of(record, name)[0] in shown.stdout


def test_the_reference_page_is_up_to_date() -> None:
    written = Path(__file__).parents[2] / "docs" / "reference" / "commands.md"
    assert written.read_text(encoding="utf-8") == page()


_VERB = [
    *("torch", "scipy", "onnxruntime", "pyarrow", "sklearn", "openvino", "uvicorn", "httpx"),
    *("tokenizers", "dimec.policies", "dimec.evaluation.rows", "dimec.runtime.wire"),
]
_HELP = [*_VERB, "numpy", "pydantic", "importlib.metadata", "dimec.core.options"]


@pytest.mark.parametrize(
    ("program", "spared"),
    [
        ("from dimec.cli.app import app; app(['--help'], standalone_mode=False)", _HELP),
        ("from dimec.cli.app import VERBS, load_verb; [*map(load_verb, VERBS)]", _VERB),
    ],
)
def test_a_help_loads_what_it_shows_and_no_more(program: str, spared: list[str]) -> None:
    program += f"; import sys; print([each for each in {spared} if each in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("verb", VERBS)
def test_the_list_of_commands_says_what_each_says_of_itself(verb: str) -> None:
    first, _, _ = (load_verb(verb).help or "").partition("\n\n")
    assert VERBS[verb][2] == " ".join(first.split())


@pytest.mark.parametrize(
    ("record", "values", "named"),
    [
        (EvaluateOptions, {"price": -1}, "--price -1"),
        (EvaluateOptions, {"policy": "x"}, "'policy': .*policies"),
        (EvaluateOptions, {"costs": ["to_moon=3"]}, "--cost to_moon=3"),
        (FrontierOptions, {"prices": "0.1;0.2"}, "--prices '0.1;0.2'"),
        (FitOptions, {}, "TASK is missing"),
        (FitOptions, {"task": "t", "data": object()}, "--data a object"),
        (FitOptions, {"task": "t", "data": os.fsdecode(b"caf\xe9.csv")}, "--data 'caf"),
        (ExportOptions, {"hidden_type": "fp32"}, "--tails"),
        (ExportOptions, {"hidden_type": "int4", "tails": True}, "--hidden-type 'INT4'"),
        (ExportOptions, {"quantize": "moon"}, "--quantize 'moon'"),
        (ProfileOptions, {"batches": "1,many"}, "--batches"),
        (StudyOptions, {"seeds": 0}, "--seeds 0"),
        (FitOptions, {"task": "t", "metric": "average-precision"}, "--positive LABEL"),
        (FitOptions, {"task": "t", "metric": "precision"}, "--metric 'precision'"),
        (ClassifyOptions, {"attempts": 11}, "--attempts 11"),
    ],
)
def test_what_is_not_allowed_names_its_option(
    record: type[BaseModel], values: dict[str, Any], named: str
) -> None:
    with pytest.raises(OptionError, match=named) as caught:
        checked(record, values)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("verb", "values"),
    [
        ("fit", {"task": "a task", "data": "x y.csv", "keep_texts": False, "skip_empty": True}),
        ("evaluate", {"policies": ("random", "cde"), "costs": CostModel(to_cloud=9, to_edge=1)}),
        ("frontier", {"prices": (0.0, 0.25), "slack": 2.0, "profile": "phone-4g"}),
        ("plan", {"max_drop": 0.5, "cuts": "2/3,3/4", "over": 500}),
        ("export", {"quantize": ("mobile", "edge"), "tails": True, "hidden_type": "FP32"}),
        ("serve", {"tier": "edge", "bundle": "b", "queue_requests": 3, "log_requests": False}),
        ("classify", {"token_needs_tls": False, "in_flight": 4}),
        ("compress", {"kind": "bottlefit", "layer": 2, "width": 16}),
        ("study", {"tasks": ("cola", "mrpc"), "seeds": 1, "price": 0.2}),
        ("profile", {"tiers": ("edge",), "engines": ("openvino",), "batches": (1, 8)}),
        ("report", {"max_drop": 0.3}),
        ("web", {"edge": ".", "points": ("a=b", "c=d"), "examples": ("one text",)}),
        ("serve", {"tier": "edge", "bundle": "b", "allow_origin": ("http://a:81", "https://b")}),
    ],
)
def test_a_command_line_that_is_written_is_read_back(verb: str, values: dict[str, Any]) -> None:
    options = checked(RECORDS[verb], values)
    heard: list[dict[str, Any]] = []

    def listen(given: dict[str, Any]) -> None:
        """Listen."""
        heard.append(given)

    other = typer.Typer()
    other.callback()(lambda: None)
    add_verb(other, RECORDS[verb], listen)
    words = shlex.split(command_line(verb, options))
    assert words[:2] == ["dimec", verb]
    done = CliRunner().invoke(other, ["listen", *words[2:]])
    assert done.exit_code == 0, done.output
    assert checked(RECORDS[verb], heard[0]) == options
    assert set(heard[0]) == options.model_fields_set


def heard(verb: str, *words: str, **environment: str) -> tuple[dict[str, Any], str]:
    """Run a command of a verb's record that only listens; returns what it was given, and what was printed."""
    given: dict[str, Any] = {}
    other = typer.Typer()
    other.callback()(lambda: None)

    def fit(told: dict[str, Any]) -> None:
        """Listen."""
        given.update(told)

    add_verb(other, RECORDS[verb], fit)
    done = CliRunner().invoke(other, ["fit", *words], env=environment, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return given, done.stdout


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("fit.toml", 'task = "t"\nepochs = 4\nlayers = 3\n'),
        ("fit.json", '{"task": "t", "epochs": 4, "layers": 3}'),
        ("fit.yaml", "task: t\nepochs: 4\nlayers: 3\n"),
        ("fit.yml", "{task: t, epochs: 4, layers: 3}"),
    ],
)
def test_the_command_line_wins_over_the_file_and_the_file_over_the_environment(
    name: str, text: str, tmp_path: Path
) -> None:
    file = tmp_path / name
    file.write_text(text)
    environment = {f"DIMEC_FIT_{name}": "2" for name in ("EPOCHS", "LAYERS", "BATCH_SIZE")}
    given, _ = heard("fit", "--config", str(file), "--epochs", "5", **environment)
    assert given == {"task": "t", "epochs": 5, "layers": 3, "batch_size": 2}


@pytest.mark.parametrize(
    ("verb", "words"),
    [
        ("fit", ["a task", "--data", "x.csv", "--no-texts", "--learning-rate", "1e-4"]),
        ("frontier", ["--prices", "0,0.25", "--policy", "random", "--cost", "to_cloud=6"]),
        ("classify", ["--file", "texts.txt", "--plain-token", "--threads", "2"]),
    ],
)
def test_a_printed_file_gives_the_options_that_it_was_printed_with(
    verb: str, words: list[str], tmp_path: Path
) -> None:
    given, _ = heard(verb, *words)
    nothing, text = heard(verb, *words, "--print-config")
    assert nothing == {}
    file = tmp_path / "options.toml"
    file.write_text(text, encoding="utf-8")
    again, _ = heard(verb, "--config", str(file))
    assert checked(RECORDS[verb], again) == checked(RECORDS[verb], given)
    assert set(again) == set(given)
    assert "# epochs = " in heard("fit", "--print-config")[1]


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("c.toml", "epoch = 3", "'epoch'.*epochs"),
        ("c.toml", "epochs = ", r"c\.toml"),
        ("c.json", "[1]", r"c\.json"),
        ("c.toml", "skip_bad = true", "two files"),
        ("c.yaml", "epoch: 3", "'epoch'.*epochs"),
        ("c.yaml", "- epochs", r"c\.yaml"),
        ("c.yaml", "epochs: [", r"c\.yaml"),
        ("c.yaml", "? [a]\n: 1", r"c\.yaml"),
        ("c.yaml", "epochs: !!python/object/apply:os.getpid []", r"c\.yaml"),
        ("c.yaml", "task: &a [1]\nepochs: *a", r"c\.yaml"),
        ("c.yaml", "epochs: " + 100 * "[" + 100 * "]", r"c\.yaml"),
        ("c.yaml", "# " + 300_000 * "x", r"c\.yaml"),
        ("c.yml", "a: \x00", r"c\.yml"),
    ],
)
def test_a_file_of_options_that_cannot_be_is_refused(
    name: str, text: str, told: str, tmp_path: Path
) -> None:
    file = tmp_path / name
    file.write_text(text)
    words = ["--token-file", str(file)] if told == "two files" else []
    verb = "classify" if words else "fit"
    with pytest.raises(OptionError, match=told):
        heard(verb, "--config", str(file), *words, *([] if words else ["t"]))


def test_yaml_without_its_library_names_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "fit.yaml"
    file.write_text("epochs: 3")
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(OptionError, match="pip install pyyaml"):
        heard("fit", "t", "--config", str(file))


def test_a_shell_completes_commands_options_and_values() -> None:
    def completed(line: str) -> list[str]:
        told = {"_DIMEC_COMPLETE": "complete_bash", "COMP_WORDS": line}
        told["COMP_CWORD"] = str(len(line.split(" ")) - 1)
        return CliRunner().invoke(app, [], prog_name="dimec", env=told).stdout.split()

    assert completed("dimec ev") == ["evaluate"]
    assert completed("dimec evaluate --max") == ["--max-drop"]
    assert completed("dimec evaluate --engine o") == ["onnxruntime", "openvino"]
    assert completed("dimec evaluate run --policy dimee") == ["dimee-fixed", "dimee-adaptive"]
    assert completed("dimec export run --policy al") == []


def test_options_of_the_command_line_alone_and_changes_come_last() -> None:
    options = FitOptions(task="t", exits="tiers")
    assert command_line("fit", options, out="a run") == "dimec fit t --exits tiers --out 'a run'"
    assert command_line("fit", options, exits="all", out="r") == "dimec fit t --exits all --out r"


def test_a_guard_is_set_by_its_options_or_as_a_whole_in_python() -> None:
    whole = GuardSettings(audit_rate=0.1, boost=2.0)
    changed = EvaluateOptions(guard=whole, slack=3.0).guard_settings
    assert changed == replace(whole, slack=0.03)
    assert EvaluateOptions(guard=whole).guard_settings is whole
    assert EvaluateOptions().guard_settings is None
    with pytest.raises(OptionError, match="--audit-rate 2"):
        _ = checked(EvaluateOptions, {"audit_rate": 2}).guard_settings


def test_functions_show_the_options_that_they_take() -> None:
    verbs = [getattr(api, name) for name in {*dimec.__all__} - {"__version__", "Classifier"}]
    for function in (*verbs, dimec.Classifier.from_pretrained):
        assert ">>> " in function.__doc__
        assert "Options:" in function.__doc__
    shown = inspect.signature(api.evaluate).parameters
    assert shown["shuffles"].default == EvaluateOptions.model_fields["shuffles"].default
    assert next(iter(shown)) == "run" and "options" not in shown


def test_editors_and_type_checkers_know_the_options_of_the_records() -> None:
    written = Path(dimec.__file__).with_name("keywords.py").read_text(encoding="utf-8")
    assert ast.dump(ast.parse(written)) == ast.dump(ast.parse(keywords.page()))
