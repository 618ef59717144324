"""Whatever is wrong with a bundle is one sentence that names the file and the remedy."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dimec.bundle import Bundle, fingerprint_of, is_bundle, load_bundle, load_tier
from dimec.bundle.hidden import Tails
from dimec.bundle.manifest import FileInfo
from dimec.core.errors import BundleError, DataError
from dimec.core.tiers import Tier


@pytest.fixture
def folder(tiny_bundle: Bundle, tmp_path: Path) -> Path:
    """A bundle that a test may damage."""
    return Path(shutil.copytree(tiny_bundle.folder, tmp_path / "bundle"))


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    return lambda path: rewrite(path, change)


def setting(key: str, value: object) -> Callable[[Path], None]:
    return edit(lambda document: document.__setitem__(key, value))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_whole_bundle_loads_and_a_device_needs_mobile_alone(folder: Path) -> None:
    whole = load_bundle(folder)
    assert is_bundle(folder)
    assert whole.mobile.policy().name == "dimee-fixed"
    assert {whole.of(tier).tier for tier in Tier} == set(Tier)  # type: ignore[union-attr]
    for tier in ("edge", "cloud"):
        shutil.rmtree(folder / tier)
    alone = load_bundle(folder)
    assert (alone.edge, alone.cloud) == (None, None)


def test_every_manifest_names_the_same_model(tiny_bundle: Bundle) -> None:
    tiers = [tiny_bundle.of(tier) for tier in Tier]
    prints = {tier.manifest.model_fingerprint for tier in tiers if tier is not None}
    assert len(prints) == 1


def test_nothing_in_a_bundle_names_a_place_on_this_machine(tiny_bundle: Bundle) -> None:
    for path in tiny_bundle.folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            for place in (b"/tmp/", b"site-packages", str(Path.home()).encode() + b"/"):
                assert place not in content, path


BAD_MANIFESTS: list[tuple[Callable[[Path], object], str]] = [
    (lambda path: os.truncate(path, 100), "damaged"),
    (lambda path: path.write_text("[]"), "damaged"),
    (lambda path: path.write_bytes(b"\xff\xfe"), "damaged"),
    (lambda path: path.write_text("[" * 10**6), "damaged"),
    (lambda path: path.write_text(" " * (17 << 20)), "16,777,216 bytes"),
    (setting("format", 2), "install a newer"),
    (setting("format", 0), "format"),
    (setting("extra", 1), "extra"),
    (setting("layers", []), "layers"),
    (setting("layers", [1, 99]), "must ascend"),
    (setting("layers", [1, 2]), "segment-2.onnx"),
    (setting("n_layers", 10**9), "n_layers"),
    (setting("inputs", ["input_ids"]), "inputs"),
    (setting("pad_id", 10**6), "pad_id"),
    (setting("price", float("nan")), "NaN"),
    (setting("tails", {"layers": [99], "width": 32}), "tails"),
    (edit(lambda it: it["costs"].update(to_moon=1)), "to_moon"),
    (edit(lambda it: it["costs"].update(to_edge=-1)), "to_edge"),
    (edit(lambda it: it["files"].update({"../x": it["files"]["embedding.onnx"]})), "../x"),
    (edit(lambda it: it["files"]["embedding.onnx"].update(bytes=2**60)), "bytes"),
    (edit(lambda it: it["files"].pop("policy.json")), "policy.json"),
    (edit(lambda it: it["files"].pop("exit-zero.safetensors")), "exit-zero.safetensors"),
    (edit(lambda it: it["files"].pop("layers.onnx")), "layers.onnx"),
    (setting("cut", "middle"), "cut"),
]


@pytest.mark.parametrize(
    ("name", "damage", "says"),
    [
        ("segment-1.onnx", lambda path: path.unlink(), "is missing"),
        ("segment-1.onnx", lambda path: os.truncate(path, 100), "has 100 bytes"),
        ("embedding.onnx", lambda path: flip(path), "SHA-256 differs"),
        ("policy.json", lambda path: path.write_text("{}"), "policy.json has 2 bytes"),
        ("policy.safetensors", lambda path: flip(path), "SHA-256 differs"),
        ("tokenizer.json", lambda path: path.write_bytes(b""), "has 0 bytes"),
        ("manifest.json", lambda path: path.unlink(), "is missing"),
        *(("manifest.json", damage, says) for damage, says in BAD_MANIFESTS),
    ],
)
def test_a_damaged_tier_is_refused(
    folder: Path, name: str, damage: Callable[[Path], object], says: str
) -> None:
    damage(folder / "mobile" / name)
    with pytest.raises(BundleError) as caught:
        load_tier(folder / "mobile")
    message = str(caught.value)
    assert says in message
    assert "mobile" in message
    assert "again" in message or "newer" in message
    assert "\n" not in message


OWN = {"name": "own", "kind": "bottlenet"}


@pytest.mark.parametrize(
    "change",
    [
        {"layers": [1, 4]},  # nothing is left to run
        {"layers": [2, 1]},
        {"layers": []},
        {"width": 0},
        {"datatype": "FP8"},
        {"datatype": "UINT8"},  # bytes are of a bottleneck
        {"other": 1},
        {"datatype": "FP16", "bottleneck": OWN},
        {"datatype": "UINT8", "bottleneck": OWN, "layers": [1, 2]},
        {"datatype": "UINT8", "bottleneck": {**OWN, "kind": "other"}},
        {"datatype": "UINT8", "bottleneck": {**OWN, "levels": 1}},
        {"datatype": "UINT8", "bottleneck": {**OWN, "pool": 0}},
        {"datatype": "UINT8", "bottleneck": {**OWN, "other": 1}},
    ],
)
def test_tails_that_cannot_be_are_refused(change: dict[str, Any]) -> None:
    good: dict[str, Any] = {"layers": [1], "width": 32}
    for fine in (good, {**good, "datatype": "UINT8", "bottleneck": OWN}):
        Tails.model_validate(fine).check(Tier.CLOUD, (1, 2, 4), n_layers=4)
    with pytest.raises(ValueError):
        Tails.model_validate({**good, **change}).check(Tier.CLOUD, (1, 2, 4), n_layers=4)


def test_without_verifying_only_sizes_are_looked_at(folder: Path) -> None:
    flip(folder / "mobile" / "embedding.onnx")
    assert load_tier(folder / "mobile", verify=False).tier is Tier.MOBILE


def test_tiers_of_two_exports_do_not_go_together(folder: Path) -> None:
    setting("model_fingerprint", f"sha256:{'0' * 64}")(folder / "cloud" / "manifest.json")
    with pytest.raises(BundleError, match="different exports"):
        load_bundle(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda it: it["label_names"].reverse(),
        lambda it: it["task"].update(name="another"),
        lambda it: it.update(policy="dimec-cascade"),
        lambda it: it["costs"].update(to_edge=9.0),
        lambda it: it.update(price=it["price"] + 1),
        lambda it: it["inputs"].reverse(),
        lambda it: it.update(max_length=it["max_length"] - 1),
        lambda it: it.update(cut="head-tail"),
        lambda it: it.update(pad_id=it["pad_id"] + 1),
        lambda it: it.update(n_layers=it["n_layers"] + 1, depths={**it["depths"], "cloud": 5}),
    ],
)
def test_tiers_of_one_model_exported_otherwise_do_not_go_together(
    folder: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    rewrite(folder / "edge" / "manifest.json", change)
    load_tier(folder / "edge")  # it is whole by itself
    with pytest.raises(BundleError, match="different exports"):
        load_bundle(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "embedding.onnx"])
def test_every_graph_and_the_tokenizer_make_the_fingerprint(name: str) -> None:
    one, other = (FileInfo(sha256=digit * 64, bytes=1) for digit in "ab")
    files = {"tokenizer.json": one, "embedding.onnx": one, "policy.json": one}
    prints = [fingerprint_of({Tier.MOBILE: files | each}) for each in ({}, {name: other})]
    assert prints[0] != prints[1]
    assert prints[0] == fingerprint_of({Tier.MOBILE: files | {"policy.json": other}})
    assert prints[0] != fingerprint_of({Tier.EDGE: files})


def test_a_tier_in_anothers_place_is_refused(folder: Path) -> None:
    shutil.rmtree(folder / "edge")
    (folder / "cloud").rename(folder / "edge")
    with pytest.raises(BundleError, match="holds the cloud tier"):
        load_bundle(folder)


def test_what_is_no_bundle_says_how_to_make_one(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is no bundle"):
        load_bundle(tmp_path / "nowhere")
    with pytest.raises(BundleError, match="give the folder above it"):
        load_bundle(folder / "mobile")
    with pytest.raises(BundleError, match="not one tier of it"):
        load_tier(folder)
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text("{}")
    with pytest.raises(BundleError, match=r"dimec export .*run --out"):
        load_bundle(run)


def test_a_policy_is_on_mobile_and_known(folder: Path) -> None:
    edge = load_tier(folder / "edge")
    with pytest.raises(BundleError, match="mobile folder"):
        edge.policy()
    with pytest.raises(BundleError, match=r"no nothing\.onnx"):
        edge.path("nothing.onnx")
    setting("policy", "clairvoyant")(folder / "mobile" / "manifest.json")
    with pytest.raises(BundleError, match="install a newer dimec"):
        load_tier(folder / "mobile").policy()


def test_texts_are_cut_and_padded(folder: Path) -> None:
    tier = load_tier(folder / "mobile")
    tokens = tier.tokenizer().encode(["fine", "good " * 500])
    assert tokens.cut.tolist() == [False, True]
    assert tokens.lengths.tolist() == [3, tier.manifest.max_length]
    assert tokens.payload_bytes.tolist() == [6, 2 * tier.manifest.max_length]
    batch = tokens.batch()
    assert batch.attention_mask.sum(axis=1).tolist() == tokens.lengths.tolist()
    assert (batch.input_ids[0, 3:] == tier.manifest.pad_id).all()
    assert tokens.batch([0]).input_ids.shape == (1, 3)
    with pytest.raises(DataError, match="single texts"):
        tier.tokenizer().encode(["fine"], ["good"])


def test_a_tokenizer_that_is_none_is_one_sentence(folder: Path) -> None:
    tier = load_tier(folder / "mobile")
    (folder / "mobile" / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match=r"tokenizer\.json is damaged"):
        tier.tokenizer()
