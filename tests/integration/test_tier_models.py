"""Models that hold a tier: other runs and Hugging Face classifiers, all tiny and real."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.hub_cache import put_in_cache
from tests.inputs import write_rows
from tests.notes import Notes
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ModernBertConfig,
    PreTrainedModel,
)

from dimec import api
from dimec.core.errors import DimecError, OptionError, RunError, UnreachableError
from dimec.data import TextDataset, load_dataset
from dimec.evaluation.tier_models import TierModel, layer_weights, read_tier_model
from dimec.runs.exit_table import ExitTable
from dimec.runs.run import Run
from dimec.training import tabulate_dataset
from dimec.training.model import find_backbone
from dimec.training.model.reading import read_adapter

WEIGHTS = "model.safetensors"
LABELS = {0: "negative", 1: "positive"}


def read(run: Run, name: str | Path, **arguments: Any) -> TierModel:
    return read_tier_model(run, name, option="--mobile-model", **arguments)


def refused(
    run: Run,
    name: str | Path,
    *named: str,
    kind: type[DimecError] = OptionError,
    **arguments: Any,
) -> None:
    with pytest.raises(kind) as caught:
        read(run, name, **arguments)
    said = str(caught.value)
    assert "\n" not in said
    assert all(each in said for each in (str(name), *named)), said


def assert_same_table(one: ExitTable, two: ExitTable) -> None:
    assert (one.layers, one.label_names) == (two.layers, two.label_names)
    for column in ("labels", "row_ids", "n_tokens", "payload_bytes"):
        np.testing.assert_array_equal(getattr(one, column), getattr(two, column))
    np.testing.assert_allclose(one.logits, two.logits, atol=1e-5)
    np.testing.assert_allclose(one.embeddings, two.embeddings, atol=1e-5)


def copy_of(
    run: Run, folder: Path, change: Callable[[dict[str, Any]], object] | None = None
) -> Run:
    """A run's folder again, with another config.json."""
    shutil.copytree(run.folder, folder)
    if change is not None:
        config = json.loads((folder / "config.json").read_text())
        change(config)
        (folder / "config.json").write_text(json.dumps(config))
    return Run.open(folder)


def bert_config(n_vocabulary: int, **changes: Any) -> BertConfig:
    sizes = {"vocab_size": n_vocabulary, "hidden_size": 24, "num_hidden_layers": 3}
    sizes |= {"num_attention_heads": 2, "intermediate_size": 40, "max_position_embeddings": 128}
    return BertConfig(**{**sizes, **changes})


@pytest.fixture(scope="module")
def other_backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    model = BertModel(bert_config(vocabulary()), add_pooling_layer=False)
    return saved(tmp_path_factory.mktemp("shallower"), model)


@pytest.fixture(scope="module")
def shallower(other_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of another depth and width, on the same rows and splits as the tiny run."""
    return fitted(other_backbone, tmp_path_factory.mktemp("runs") / "shallower", max_rows=600)


def fitted(other_backbone: Path, out: Path, **options: Any) -> Run:
    chosen = {"backbone": str(other_backbone), "pooling": "mean", "epochs": 1, **options}
    return api.fit(chosen.pop("task", "reviews"), out=out, **chosen)


def reviews_file(folder: Path) -> Path:
    """The first reviews as a file of the user's, in which the classes are in another order of appearance."""
    return write_rows(folder / "mine.jsonl", load_dataset("reviews").take(range(90)))


def held_out_texts(run: Run, split: str = "test") -> TextDataset:
    table = run.test if split == "test" else run.validation
    return load_dataset("reviews").take(table.row_ids)


# Another run


def test_saved_tables_of_the_same_rows_are_used_as_they_are(tiny_run: Run, shallower: Run) -> None:
    notes = Notes()
    model = read(tiny_run, str(shallower.folder), progress=notes)
    assert model.name == str(shallower.folder)
    assert_same_table(model.validation, shallower.validation)
    assert_same_table(model.table, shallower.test)
    np.testing.assert_array_equal(model.table.logits, shallower.test.logits)
    assert model.validation.dynamics is not None
    assert model.table.layers == (1, 2, 3)
    assert model.layer_work == pytest.approx((4 * 24**2 + 2 * 24 * 40) / (4 * 32**2 + 2 * 32 * 64))
    assert not notes.warned and not notes.bars


def test_a_run_may_hold_its_own_tier(tiny_run: Run) -> None:
    model = read(tiny_run, tiny_run.folder)
    assert_same_table(model.table, tiny_run.test)
    assert model.layer_work == 1.0


def test_the_backbones_first_layers_cost_what_the_runs_layers_cost(
    tiny_run: Run, tiny_backbone: Path, tmp_path: Path
) -> None:
    other = fitted(tiny_backbone, tmp_path / "other", max_rows=600, layers=2)
    model = read(tiny_run, other.folder)
    assert model.validation.layers == (1, 2)
    assert model.layer_work == 1.0


def test_saved_tables_need_no_library_of_an_extra(tiny_run: Run, shallower: Run) -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    contracts = project["tool"]["importlinter"]["contracts"]
    heavy = next(each for each in contracts if each["id"] == "device")["forbidden_modules"]
    code = f"""
import sys
for name in {heavy}:
    sys.modules[name] = None
from dimec.core.errors import MissingExtraError
from dimec.runs.run import Run
from dimec.evaluation.tier_models import read_tier_model
run = Run.open(sys.argv[1])
model = read_tier_model(run, sys.argv[2], option="--mobile-model")
print(model.validation.logits.shape, model.table.logits.shape)
try:
    read_tier_model(run, sys.argv[3], option="--mobile-model")
except MissingExtraError as exc:
    print(exc)
"""
    folders = [str(tiny_run.folder), str(shallower.folder), "org/name"]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *folders],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "(60, 3, 2) (60, 3, 2)"
    assert "pip install 'dimec[train]'" in done.stdout


def test_other_splits_without_leakage_are_tabulated(
    tiny_run: Run, shallower: Run, tmp_path: Path
) -> None:
    other = copy_of(shallower, tmp_path / "other")
    half = shallower.test.take(np.arange(30))
    half.save(other.folder / "exits" / "test.safetensors")
    notes = Notes()
    model = read(tiny_run, other.folder, progress=notes)
    # its model says of the run's rows, in the run's order, what its whole table said
    assert_same_table(model.table, shallower.test)
    assert model.validation.dynamics is not None and model.table.dynamics is None
    assert notes.bars["Reading the exits"] == [60, 60]
    assert not notes.warned


@pytest.mark.parametrize("fingerprint", [{}, {"data_fingerprint": "0" * 64}])
def test_a_run_trained_on_rows_it_would_be_judged_on_is_refused(
    tiny_run: Run, shallower: Run, tmp_path: Path, fingerprint: dict[str, str]
) -> None:
    # of the same rows, or of others that --max-rows drew from the same source
    other = copy_of(shallower, tmp_path / "other", lambda config: config.update(fingerprint))
    for split in ("validation", "test"):
        table = getattr(shallower, split).take(np.arange(30))
        table.save(other.folder / "exits" / f"{split}.safetensors")
    path = other.folder / "split.json"
    trained_on = [*tiny_run.validation.row_ids[:7].tolist(), *tiny_run.test.row_ids[:5].tolist()]
    path.write_text(json.dumps({"train": trained_on, "validation": [], "test": []}))
    options = ("--seed 0", "--split auto", "--max-rows 600")
    refused(tiny_run, other.folder, "12 of the 120", *options)
    # the test split is not looked at where other rows are evaluated
    refused(tiny_run, other.folder, "7 of the 60", dataset=held_out_texts(tiny_run))
    all_rows = copy_of(
        tiny_run, tmp_path / "all", lambda config: config["options"].update(max_rows=None)
    )
    refused(all_rows, other.folder, "no --max-rows")
    path.write_text('{"train": "all"}')
    refused(tiny_run, other.folder, "split.json", kind=RunError)


def test_a_run_on_other_data_is_tabulated_and_warned_of(
    tiny_run: Run, other_backbone: Path, tmp_path: Path
) -> None:
    data = reviews_file(tmp_path)
    other = fitted(other_backbone, tmp_path / "other", task="mine", data=str(data))
    notes = Notes()
    model = read(tiny_run, other.folder, progress=notes)
    assert_same_table(model.table, tabulate_dataset(other, held_out_texts(tiny_run)))
    assert_same_table(
        model.validation, tabulate_dataset(other, held_out_texts(tiny_run, "validation"))
    )
    np.testing.assert_array_equal(model.validation.row_ids, tiny_run.validation.row_ids)
    assert model.validation.dynamics is None
    assert len(notes.warned) == 1
    assert "fitted on other data" in notes.warned[0] and str(data) in notes.warned[0]


def test_other_rows_can_be_evaluated(tiny_run: Run, shallower: Run, tmp_path: Path) -> None:
    dataset = load_dataset(
        "reviews", data=reviews_file(tmp_path), label_names=tuple(LABELS.values())
    )
    model = read(tiny_run, shallower.folder, dataset=dataset)
    assert model.validation.dynamics is not None
    assert_same_table(model.table, tabulate_dataset(shallower, dataset))
    assert len(model.table) == 90


def test_other_classes_and_kinds_of_texts_are_refused(
    tiny_run: Run, shallower: Run, tmp_path: Path
) -> None:
    swapped = copy_of(
        shallower,
        tmp_path / "swapped",
        lambda config: config["task"].update(label_names=["positive", "negative"]),
    )
    refused(tiny_run, swapped.folder, "positive, negative", "negative, positive")
    pairs = copy_of(shallower, tmp_path / "pairs", lambda config: config["task"].update(pairs=True))
    refused(tiny_run, pairs.folder)


def test_altered_tables_are_refused(tiny_run: Run, shallower: Run, tmp_path: Path) -> None:
    other = copy_of(shallower, tmp_path / "labels")
    path = other.folder / "exits" / "test.safetensors"
    table = shallower.test
    replace(table, labels=1 - table.labels).save(path)
    refused(tiny_run, other.folder, "test", kind=RunError)
    replace(table, label_names=("a", "b")).save(path)
    refused(tiny_run, other.folder, "config.json", kind=RunError)
    path.write_bytes(b"cut")
    refused(tiny_run, other.folder, str(path), kind=RunError)
    path.unlink()
    refused(tiny_run, other.folder, kind=RunError)


def test_a_run_without_texts_takes_saved_tables_only(
    tiny_run: Run, shallower: Run, classifier: Path, tmp_path: Path
) -> None:
    bare = copy_of(tiny_run, tmp_path / "bare")
    (bare.folder / "texts.parquet").unlink()
    assert_same_table(read(bare, shallower.folder).table, shallower.test)
    refused(bare, classifier, "texts.parquet", "--no-texts")


def test_texts_that_do_not_fit_the_tables_are_refused(
    tiny_run: Run, classifier: Path, tmp_path: Path
) -> None:
    run = copy_of(tiny_run, tmp_path / "run")
    path = run.folder / "texts.parquet"
    texts = pq.read_table(path)

    def change(column: str, values: pa.Array) -> None:
        pq.write_table(texts.set_column(texts.schema.get_field_index(column), column, values), path)

    def refuse() -> None:
        with pytest.raises(RunError) as caught:
            read(run, classifier)
        assert str(path) in str(caught.value)

    change("label", pa.array(["negative"] * len(texts)))
    refuse()
    change("label", pa.array(["neutral"] * len(texts)))
    refuse()
    change("row_id", pa.array(range(10_000, 10_000 + len(texts))))
    refuse()
    pq.write_table(texts.drop_columns(["first"]), path)
    refuse()
    path.write_bytes(b"cut")
    refuse()
    # the order of the file is not relied on
    pq.write_table(texts.take(np.arange(len(texts))[::-1]), path)
    assert_same_table(read(run, classifier).table, read(tiny_run, classifier).table)


# A Hugging Face classifier


def saved(folder: Path, model: PreTrainedModel) -> Path:
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(find_backbone("minilm")).save_pretrained(folder)
    return folder


def vocabulary() -> int:
    return len(AutoTokenizer.from_pretrained(find_backbone("minilm")))


def bert_classifier(folder: Path, **changes: Any) -> Path:
    torch.manual_seed(2)
    config = bert_config(vocabulary(), **{"id2label": LABELS, "initializer_range": 0.5, **changes})
    return saved(folder, BertForSequenceClassification(config))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bert_classifier(tmp_path_factory.mktemp("classifier"))


@pytest.fixture(scope="module")
def distilbert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    config = DistilBertConfig(
        vocab_size=vocabulary(),
        dim=16,
        hidden_dim=40,
        n_layers=2,
        n_heads=2,
        max_position_embeddings=10,
        initializer_range=0.5,
        # in another order and another case than the run's
        id2label={0: "POSITIVE", 1: "Negative"},
    )
    folder = tmp_path_factory.mktemp("distilbert")
    return saved(folder, DistilBertForSequenceClassification(config))


class Plain:
    """What plain transformers makes of one text, not batched."""

    def __init__(self, folder: Path, *, max_length: int) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        self.max_length = max_length

    def tokens(self, text: str) -> dict[str, torch.Tensor]:
        encoded = self.tokenizer(
            text, truncation=True, max_length=self.max_length, padding=False, return_tensors="pt"
        )
        takes_types = self.model.config.model_type != "distilbert"
        return {key: ids for key, ids in encoded.items() if takes_types or key != "token_type_ids"}

    @torch.inference_mode()
    def __call__(self, text: str) -> tuple[np.ndarray, np.ndarray, int]:
        """Return its logits, its mean embedding and the number of its tokens."""
        inputs = self.tokens(text)
        output = self.model(**inputs, output_hidden_states=True)
        embedding = output.hidden_states[0][0].mean(0).numpy()
        return output.logits[0].numpy(), embedding, inputs["input_ids"].shape[1]


def test_a_classifier_says_what_plain_transformers_computes(
    tiny_run: Run, classifier: Path
) -> None:
    notes = Notes()
    model = read(tiny_run, str(classifier), progress=notes)
    plain = Plain(classifier, max_length=128)
    assert model.table.layers == (3,)
    assert model.table.label_names == ("negative", "positive")
    assert model.validation.dynamics is None
    for table, own, split in (
        (model.validation, tiny_run.validation, "validation"),
        (model.table, tiny_run.test, "test"),
    ):
        np.testing.assert_array_equal(table.row_ids, own.row_ids)
        np.testing.assert_array_equal(table.labels, own.labels)
        for row, text in enumerate(held_out_texts(tiny_run, split).first):
            logits, embedding, n_tokens = plain(text)
            np.testing.assert_allclose(table.logits[row, 0], logits, atol=1e-5)
            np.testing.assert_allclose(table.embeddings[row], embedding, atol=1e-5)
            assert table.n_tokens[row] == n_tokens
    # the same tokenizer as the run's, so the same payload; and what it says depends on the text
    np.testing.assert_array_equal(model.table.payload_bytes, tiny_run.test.payload_bytes)
    assert model.table.logits[:, 0].std(axis=0).min() > 0.01
    assert "not fitted by dimec" in notes.warned[0]
    assert notes.bars["Tokenising"] == [60, 60] and notes.bars["Reading the exits"] == [60, 60]


def test_classes_go_by_name_and_long_texts_are_cut(tiny_run: Run, distilbert: Path) -> None:
    notes = Notes()
    model = read(tiny_run, distilbert, progress=notes)
    texts = held_out_texts(tiny_run)
    plain = Plain(distilbert, max_length=10)
    adapter = read_adapter(distilbert, fault=OptionError)
    n_cut = 0
    for row, text in enumerate(texts.first):
        logits, embedding, n_tokens = plain(text)
        np.testing.assert_allclose(model.table.logits[row, 0], logits[::-1], atol=1e-5)
        np.testing.assert_allclose(model.table.embeddings[row], embedding, atol=1e-5)
        assert model.table.n_tokens[row] == n_tokens
        assert model.table.payload_bytes[row] == 2 * n_tokens
        n_cut += bool(tiny_run.test.n_tokens[row] > 10)
        with torch.inference_mode():
            embedded = adapter.embed(**plain.tokens(text))[0].mean(0).numpy()
        np.testing.assert_allclose(model.table.embeddings[row], embedded, atol=1e-5)
    assert 0 < n_cut < len(texts)
    told = [each for each in notes.warned if "--max-length" in each]
    assert any(f"{n_cut / len(texts):.1%}" in each and "10 tokens" in each for each in told)
    assert not any("does not name its classes" in line for line in notes.said)
    assert model.layer_work == pytest.approx((4 * 16**2 + 2 * 16 * 40) / (4 * 32**2 + 2 * 32 * 64))


def test_the_runs_own_length_holds_for_a_classifier_too(
    tiny_run: Run, classifier: Path, tmp_path: Path
) -> None:
    run = copy_of(tiny_run, tmp_path / "run", lambda config: config["options"].update(max_length=8))
    table = read(run, classifier).table
    np.testing.assert_array_equal(table.n_tokens, np.minimum(tiny_run.test.n_tokens, 8))
    assert table.n_tokens.max() == 8


def test_classes_without_names_are_taken_in_order(
    tiny_run: Run, classifier: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "generic"
    shutil.copytree(classifier, folder)
    change_config(folder, id2label={"0": "LABEL_0", "1": "LABEL_1"})
    notes = Notes()
    dataset = held_out_texts(tiny_run).take(range(20))
    generic = read(tiny_run, folder, dataset=dataset, progress=notes)
    assert_same_table(generic.table, read(tiny_run, classifier).table.take(np.arange(20)))
    assert any("taken to be negative, positive, in this order" in line for line in notes.said)


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def with_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], object]:
    def rewrite(folder: Path) -> None:
        path = folder / WEIGHTS
        weights = {name: tensor.clone() for name, tensor in load_file(path).items()}
        change(weights)
        save_file(weights, path, metadata={"format": "pt"})

    return rewrite


def without_head(weights: dict[str, torch.Tensor]) -> None:
    del weights["classifier.weight"], weights["classifier.bias"]


def with_config(**changes: Any) -> Callable[[Path], object]:
    return lambda folder: change_config(folder, **changes)


def with_code(folder: Path) -> None:
    """A checkpoint that brings code along: if it were run, it would leave a file."""
    (folder / "modeling_mine.py").write_text(f"open({str(folder / 'ran')!r}, 'w').close()\n")
    change_config(
        folder,
        model_type="mine",
        auto_map={"AutoModelForSequenceClassification": "modeling_mine.Mine"},
    )


# What is done to a folder, and what the message then names beside it.
BROKEN: list[tuple[Callable[[Path], object], str]] = [
    (with_config(id2label={"0": "spam", "1": "ham"}), "spam, ham"),
    (with_config(id2label={"1": "negative", "2": "positive"}), ""),
    (with_config(problem_type="multi_label_classification"), ""),
    (with_config(model_type="gpt2"), "gpt2"),
    (with_config(model_type=None), ""),
    (with_code, "mine"),
    (with_weights(without_head), "classifier.bias"),
    (with_weights(lambda weights: weights["classifier.bias"].fill_(float("nan"))), ""),
    (lambda folder: (folder / WEIGHTS).rename(folder / "pytorch_model.bin"), "pytorch_model.bin"),
    (lambda folder: (folder / WEIGHTS).write_bytes(b"cut"), ""),
    (lambda folder: (folder / "tokenizer.json").write_text("{"), "tokenizer"),
    (lambda folder: (folder / "config.json").write_text("{"), "config.json"),
    (lambda folder: (folder / "config.json").write_text("[]"), "config.json"),
    (lambda folder: (folder / "config.json").unlink(), "--mobile-model"),
]


@pytest.mark.parametrize(("damage", "named"), BROKEN)
def test_a_folder_that_holds_no_usable_classifier_is_refused(
    tiny_run: Run, classifier: Path, tmp_path: Path, damage: Callable[[Path], object], named: str
) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(classifier, folder)
    damage(folder)
    refused(tiny_run, folder, named)
    assert not (folder / "ran").exists()


def test_a_bare_encoder_and_other_classes_are_refused(
    tiny_run: Run, other_backbone: Path, tmp_path: Path
) -> None:
    refused(tiny_run, other_backbone)
    names = {0: "negative", 1: "neutral", 2: "positive"}
    three = bert_classifier(tmp_path / "three", id2label=names)
    refused(tiny_run, three, "negative, neutral, positive")
    refused(tiny_run, tiny_run.model_folder)


def test_a_tokenizer_of_another_model_is_refused(tiny_run: Run, tmp_path: Path) -> None:
    small = bert_classifier(tmp_path / "small", vocab_size=2000)
    refused(tiny_run, small, "2000")


def test_no_such_folder_and_no_hub(tiny_run: Run, tmp_path: Path, hub_cache: Path) -> None:
    refused(tiny_run, tmp_path / "absent", "--mobile-model")
    refused(tiny_run, "runs/absent", "--mobile-model", kind=UnreachableError)


def test_a_classifier_that_the_cache_holds(
    tiny_run: Run, classifier: Path, hub_cache: Path
) -> None:
    put_in_cache(hub_cache, "org/name", classifier)
    model = read(tiny_run, "org/name")
    assert model.name == "org/name"
    assert_same_table(model.table, read(tiny_run, classifier).table)


# What a layer costs


@pytest.mark.parametrize(
    "config",
    [
        bert_config(30, hidden_size=16, intermediate_size=24),
        DistilBertConfig(vocab_size=30, dim=16, hidden_dim=24, n_layers=2, n_heads=2),
        ModernBertConfig(
            vocab_size=30,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            cls_token_id=1,
            sep_token_id=2,
        ),
    ],
    ids=lambda config: config.model_type,
)
def test_the_weights_of_a_layer_are_those_of_its_matrices(config: Any, tmp_path: Path) -> None:
    model = AutoModel.from_config(config)  # type: ignore[no-untyped-call]
    stack = {"bert": "encoder.layer", "distilbert": "transformer.layer", "modernbert": "layers"}
    layer = model.get_submodule(stack[config.model_type])[1]
    matrices = sum(weights.numel() for weights in layer.parameters() if weights.dim() == 2)
    config.save_pretrained(tmp_path)
    assert layer_weights(tmp_path / "config.json", fault=RunError) == matrices


@pytest.mark.parametrize("content", [None, "{", "[]", '{"hidden_size": 8}', '{"dim": "8"}'])
def test_a_run_whose_model_does_not_say_its_width(
    tiny_run: Run, shallower: Run, tmp_path: Path, content: str | None
) -> None:
    other = copy_of(shallower, tmp_path / "other")
    path = other.model_folder / "config.json"
    path.unlink()
    if content is not None:
        path.write_text(content)
    refused(tiny_run, other.folder, str(path), kind=RunError)
