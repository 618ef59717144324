"""What a file may hold, of every kind that is read: one sentence of the right class, and nothing waited for."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from dimec.bundle.tokenizer_parts import check_tokenizer
from dimec.core.errors import BundleError, DimecError, InputError, OptionError, RunError, StateError
from dimec.core.untrusted import parse_json, read_bounded, read_json, trusting_nothing
from dimec.costs.profiles import load_profile
from dimec.policies import POLICIES, Calibration, fit_policies, load_policies, save_policies
from dimec.reporting.results import read_result, read_whatif
from dimec.runs.compressed import read_compressed_config
from dimec.runs.exit_table import ExitTable
from dimec.runs.run import Run, RunConfig, read_config
from dimec.runtime.device.lines import AnswerFile
from dimec.runtime.device.state import FILE, Keeper, LearntState
from tests.unit.tables import random_table
from tests.unit.test_policies import DEPTHS
from tests.unit.test_state import keeper, learn

CONFIG = RunConfig.model_construct()  # type: ignore[call-arg]  # the epochs are read without it
LOADERS: dict[str, tuple[str, Callable[[Path], object], type[InputError]]] = {
    "run": ("config.json", lambda path: read_config(path.parent), RunError),
    "epochs": ("metrics.jsonl", lambda path: Run(path.parent, CONFIG).epochs(), RunError),
    "table": ("test.safetensors", ExitTable.load, RunError),
    "policies": ("router.json", lambda path: load_policies(path.parent, POLICIES), RunError),
    "compressed": ("config.json", lambda path: read_compressed_config(path.parent), RunError),
    "result": ("result.json", lambda path: read_result(path.parent), RunError),
    "whatif": ("whatif.json", lambda path: read_whatif(path.parent), RunError),
    "profile": ("mine.json", load_profile, OptionError),
    "state": (FILE, lambda path: LearntState.load(path.parent), StateError),
}
JSON_LOADERS = [name for name, (file, _, _) in LOADERS.items() if file.endswith(".json")]


def refused(load: Callable[[], object], kind: type[InputError]) -> str:
    """Return the one sentence that a loader ends with."""
    with pytest.raises(DimecError) as caught:
        load()
    assert type(caught.value) is kind
    said = str(caught.value)
    assert "\n" not in said
    assert "\x1b" not in said
    return said


def a_folder(path: Path) -> None:
    path.mkdir()


def a_socket(path: Path) -> None:
    """Leave a socket behind; its name must be short, so it is made from within its folder."""
    before = Path.cwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(before)


def a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("make", [os.mkfifo, a_socket, a_folder, a_device])
@pytest.mark.parametrize("name", LOADERS)
def test_what_is_no_regular_file_is_not_waited_for(
    tmp_path: Path, name: str, make: Callable[[Path], None]
) -> None:
    file, load, kind = LOADERS[name]
    make(tmp_path / file)
    assert file in refused(lambda: load(tmp_path / file), kind)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"format": null}',
        '{"format": "1"}',
        '{"format": true}',
        '{"format": 1.0}',
        '{"format": 1e999}',
        '{"format": NaN}',
        '{"format": -Infinity}',
        '{"format": 1, "\\u001b[31m": 1}',
        '{"format": 1, "\\u009b31m": "\\u202e"}',
        '{"format": 1, "price": ' + "9" * 5_000 + "}",
        '"\\ud800"',
        '"' + r"\"" * 200_000,
        b"\xff\xfe{\x00}\x00",
        b"\xef\xbb\xbf{}",
        b'{"a": "\xff"}',
        b"\x00" * 100,
    ],
)
@pytest.mark.parametrize("name", JSON_LOADERS)
def test_json_that_is_none_or_not_what_it_should_be(
    tmp_path: Path, name: str, text: str | bytes
) -> None:
    file, load, kind = LOADERS[name]
    path = tmp_path / file
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert file in refused(lambda: load(path), kind)


def test_many_faults_are_not_collected(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"format": 1, **{f"key {place}": 0 for place in range(50_000)}}))
    assert "20,000" in refused(lambda: read_config(tmp_path), RunError)
    path.write_text(" " * (17 * 2**20))
    assert "bytes" in refused(lambda: read_config(tmp_path), RunError)


@pytest.mark.parametrize(
    "raised",
    [
        RecursionError("too deep"),
        MemoryError(),
        ValueError("\x1b[2J" * 500),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no"),
        type("PanicException", (BaseException,), {})("index out of bounds"),
        OSError("of a library, without a number"),
    ],
)
def test_whatever_a_library_raises_becomes_the_fault(raised: BaseException) -> None:
    def load() -> None:
        with trusting_nothing(Path("a/file"), BundleError, remedy="copy it again"):
            raise raised

    said = refused(load, BundleError)
    assert said.startswith("a/file is damaged")
    assert len(said) < 300


@pytest.mark.parametrize("raised", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_what_ends_a_process_passes(raised: type[BaseException]) -> None:
    with pytest.raises(raised), trusting_nothing(Path("a"), BundleError, remedy="copy it again"):
        raise raised


def test_a_link_to_a_regular_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "real.json").write_text('{"a": [1, 2.5, "x", null, true]}')
    (tmp_path / "link.json").symlink_to(tmp_path / "real.json")
    assert read_json(tmp_path / "link.json") == {"a": [1, 2.5, "x", None, True]}
    assert read_bounded(tmp_path / "link.json", limit=32).startswith(b"{")
    with pytest.raises(ValueError, match="more than 31 bytes"):
        read_bounded(tmp_path / "link.json", limit=31)


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(plain)
def test_plain_json_is_read_as_python_reads_it(document: Any) -> None:
    for ascii_only in (True, False):
        content = json.dumps(document, ensure_ascii=ascii_only).encode()
        assert parse_json(content) == document


@given(st.text())
def test_no_message_is_obeyed_by_a_terminal(text: str) -> None:
    said = str(RunError(text))
    assert not any(
        ord(each) < 32 or 0x7F <= ord(each) < 0xA0 for each in said if each not in "\n\t"
    )
    said.encode()  # no half of a character either


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("labels", np.zeros(20, np.float32)),
        ("labels", np.zeros((20, 1), np.int64)),
        ("logits", np.zeros((20, 6, 2), np.float64)),
        ("logits", np.zeros((20, 12), np.float32)),
        ("embeddings", np.zeros(20, np.float32)),
        ("n_tokens", np.zeros(20, np.bool_)),
        ("surprise", np.zeros(3, np.int64)),
    ],
)
def test_arrays_of_another_type_or_shape(tmp_path: Path, name: str, array: Any) -> None:
    path = tmp_path / "test.safetensors"
    random_table(20).save(path)
    rewrite(path, lambda header, arrays: arrays.update({name: array}))
    assert name in refused(lambda: ExitTable.load(path), RunError)


@pytest.mark.parametrize("dtype", ["BF16", "F8_E4M3", "U16", "F64", "nonsense"])
def test_array_types_that_numpy_may_not_know(tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "test.safetensors"
    random_table(20).save(path)
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"F32"', f'"{dtype}"'.encode().ljust(5), 1))
    refused(lambda: ExitTable.load(path), RunError)


def rewrite(path: Path, change: Callable[[dict[str, Any], dict[str, Any]], object]) -> None:
    """Change the header and the arrays of a file, which stays a good safetensors file."""
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        header = json.loads(file.metadata()["dimec"])
        arrays = {name: file.get_tensor(name).copy() for name in file.keys()}  # noqa: SIM118
    change(header, arrays)
    save_file(arrays, path, metadata={"dimec": json.dumps(header)})


def learnt(folder: Path) -> Callable[[], Keeper]:
    """Keep what a bandit learnt from five samples, and return what opens it again."""
    policy = POLICIES["adaee"].fit(Calibration(random_table(200, seed=1), DEPTHS))
    with keeper(folder, policy.fresh()) as kept:
        learn(kept, range(5))
    return lambda: keeper(folder, policy.fresh())


@pytest.mark.parametrize(
    "change",
    [
        lambda header, _: header.update(format=True),
        lambda header, _: header.update(format="1"),
        lambda header, _: header.update(format=None),
        lambda header, _: header.update(updates=-5),
        lambda header, _: header.update(updates=2**53 + 1),
        lambda header, _: header.update(updates=6),
        lambda header, _: header.update(updates=5.0),
        lambda header, _: header.update(updates=True),
        lambda header, _: header.update(surprise=1),
        lambda _, arrays: arrays["counts"].__setitem__(0, -2),  # test_state.py has the others
        lambda _, arrays: arrays["sums"].__setitem__(0, np.nan),
        lambda _, arrays: arrays.pop("sums"),
        lambda _, arrays: arrays.update({"later": np.ones(3)}),
        lambda _, arrays: arrays.update({"sums": np.ones(40)}),
    ],
)
def test_what_no_device_can_have_learnt(
    tmp_path: Path, change: Callable[[dict[str, Any], dict[str, Any]], object]
) -> None:
    again = learnt(tmp_path)
    with again() as kept:
        assert kept.updates == 5
    rewrite(tmp_path / FILE, change)
    assert FILE in refused(again, StateError)


def test_deep_json_in_the_metadata_of_a_state(tmp_path: Path) -> None:
    path = tmp_path / FILE
    save_file({"sums": np.ones(3)}, path, metadata={"dimec": "[" * 200_000})
    refused(lambda: LearntState.load(tmp_path), StateError)
    header = b'{"a":' * 200_000
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    refused(lambda: LearntState.load(tmp_path), StateError)
    path.write_bytes((2**63).to_bytes(8, "little") + b"{}")
    refused(lambda: LearntState.load(tmp_path), StateError)


EMPTIED: tuple[Any, ...] = ([], {}, None, "x", [None])


@pytest.mark.parametrize("name", [n for n in POLICIES if not POLICIES[n].bottleneck])
def test_a_policy_whose_settings_were_emptied_is_refused_before_a_text_comes(
    tmp_path: Path, name: str
) -> None:
    given = Calibration(random_table(60), DEPTHS)
    save_policies(tmp_path, fit_policies(given, [name]), given)
    path = tmp_path / "router.json"
    whole = path.read_text()
    for setting in json.loads(whole)["policies"][name]["settings"]:
        for value in EMPTIED:
            document = json.loads(whole)
            document["policies"][name]["settings"][setting] = value
            path.write_text(json.dumps(document))
            try:
                load_policies(tmp_path, POLICIES)
            except RunError as exc:
                assert "router.json" in str(exc)
            else:
                # What a policy can do without, it was played through without.
                assert setting in ("unseen_limit", "guard", "edge_layers", "seed"), (setting, value)


@pytest.mark.parametrize("arrays", [lambda a: a[:0], lambda a: a[..., :-1], lambda a: -1 - a])
def test_a_policy_whose_arrays_are_others_is_refused(
    tmp_path: Path, arrays: Callable[[Any], Any]
) -> None:
    from safetensors.numpy import load_file

    given = Calibration(random_table(60), DEPTHS)
    for name in ("dimec-dc-fixed", "adaee", "dee", "lee", "dimec-guarded"):
        save_policies(tmp_path, fit_policies(given, [name]), given)
        path = tmp_path / "router.safetensors"
        whole = load_file(path)
        key = next(k for k in sorted(whole) if k.rpartition("/")[2] in ("counts", "stop", "audits"))
        save_file({**whole, key: np.ascontiguousarray(arrays(whole[key]))}, path)
        refused(lambda: load_policies(tmp_path, POLICIES), RunError)


GROWS = {"type": "Replace", "pattern": {"Regex": "."}, "content": "aaa"}
GOOD: dict[str, Any] = {"model": {"type": "WordPiece", "unk_token": "[UNK]", "vocab": {"[UNK]": 0}}}


def test_a_tokenizer_of_no_surprises_passes() -> None:
    check_tokenizer(GOOD)
    check_tokenizer(
        {**GOOD, "normalizer": {"type": "Replace", "pattern": {"String": "``"}, "content": '"'}}
    )


@pytest.mark.parametrize(
    "change",
    [
        {"model": {**GOOD["model"], "vocab": {}}},
        {"model": {**GOOD["model"], "vocab": {"a": 0}}},
        {"model": {**GOOD["model"], "max_input_chars_per_word": 10**9}},
        {"model": {**GOOD["model"], "continuing_subword_prefix": "#" * 10**6}},
        {"normalizer": {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10**6}},
        {"normalizer": {"type": "Replace", "pattern": {"String": ""}, "content": "a" * 500}},
        {"normalizer": {"type": "Sequence", "normalizers": [GROWS] * 9}},
        {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated"}},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Whitespace"}] * 500}},
        {"added_tokens": [{"id": 0, "content": "a" * 10**5}]},
    ],
)  # fmt: skip
def test_a_tokenizer_that_takes_a_text_too_far(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must|grow|lacks"):
        check_tokenizer({**GOOD, **change})


@pytest.mark.parametrize("text", ["[" * 100_000, '{"index": ', '{"index": NaN}', "{}", "\x00"])
@pytest.mark.parametrize("spoilt", ["out.jsonl", "out.jsonl.unfinished"])
def test_answers_that_were_begun_are_read_with_the_same_care(
    tmp_path: Path, spoilt: str, text: str
) -> None:
    out = tmp_path / "out.jsonl"
    with AnswerFile(out, job={"texts": "a"}) as file:
        file.write('{"index": 0}')
    with AnswerFile(out, job={"texts": "a"}) as file:
        assert (file.done, file.n_done) == (0, 1)
    (tmp_path / spoilt).write_text(f"{text}\n")
    with pytest.raises(OptionError, match="--restart"):
        AnswerFile(out, job={"texts": "a"})
