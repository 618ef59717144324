"""Fits of a backbone's first layers: what the run holds, who can read it, and what it is too small for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.commands import Here
from tests.integration.test_training import options, weights
from tests.notes import Notes
from transformers import AlbertConfig, AlbertModel, AutoModel, AutoTokenizer

from dimec import api
from dimec.core.errors import OptionError, RunError
from dimec.core.tiers import Depths
from dimec.data import load_dataset
from dimec.runs.exit_table import ExitTable
from dimec.runs.run import Run
from dimec.training import tabulate_dataset
from dimec.training.model import load_backbone, load_model


@pytest.fixture(scope="module")
def small(tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Give a run of two of the four layers whose backbone has not moved: rates next to nothing."""
    still = {"learning_rate": 1e-12, "epochs": 1, "layers": 2}
    folder = tmp_path_factory.mktemp("smaller") / "run"
    return api.fit("reviews", out=folder, **options(tiny_backbone, **still))


def test_a_run_of_two_layers_holds_all_but_policies(small: Run, tiny_run: Run) -> None:
    assert (small.config.n_layers, small.config.exits, small.config.depths) == (2, (1, 2), {})
    names = {path.name for path in small.folder.iterdir()}
    assert names == {path.name for path in tiny_run.folder.iterdir()} - {
        "router.json",
        "router.safetensors",
        "evaluation",
    }
    assert small.test.layers == small.validation.layers == (1, 2)
    assert small.validation.dynamics is not None


def test_its_layers_are_the_backbones_first(small: Run, tiny_backbone: Path) -> None:
    backbone = load_backbone(str(tiny_backbone)).adapter.model.state_dict()
    cut = load_model(small.model_folder).model.adapter.model.state_dict()
    assert set(cut) == {
        name for name in backbone if not name.startswith(("encoder.layer.2", "encoder.layer.3"))
    }
    for name, tensor in cut.items():
        torch.testing.assert_close(tensor, backbone[name], atol=1e-6, rtol=0)


def test_it_is_read_again_by_us_and_by_plain_transformers(small: Run) -> None:
    again = tabulate_dataset(small, load_dataset("reviews").take(small.test.row_ids))
    np.testing.assert_allclose(again.logits, small.test.logits, atol=1e-5)
    model, report = AutoModel.from_pretrained(
        small.model_folder, add_pooling_layer=False, output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    tokenizer = AutoTokenizer.from_pretrained(small.model_folder)
    text = load_dataset("reviews").take(small.test.row_ids[:1]).first[0]
    with torch.no_grad():
        hidden = model.eval()(**tokenizer(text, return_tensors="pt")).last_hidden_state
    head = weights(small)
    logits = head["heads.2.1.weight"] @ hidden[0].mean(0) + head["heads.2.1.bias"]
    np.testing.assert_allclose(logits.numpy(), small.test.logits[0, 1], atol=1e-5)


def test_it_makes_no_three_tiers(small: Run) -> None:
    with pytest.raises(RunError, match=r"2 layers make no three tiers: .*--mobile-model or"):
        api.evaluate(small)
    with pytest.raises(RunError, match="no three tiers"):
        api.evaluate(small, mobile_layers=1, edge_layers=2)


def test_the_command_says_what_it_is_good_for(small: Run, here: Here) -> None:
    names = ["backbone", "pooling", "layers", "max_rows", "epochs"]
    names += ["learning_rate", "head_learning_rate"]
    flags = [
        part
        for name in names
        for part in (f"--{name.replace('_', '-')}", getattr(small.config.options, name))
    ]
    closing = here("fit", "reviews", "--out", small.folder, *flags).out
    assert "one tier of another run" in closing
    assert closing.endswith(f"dimec evaluate RUN --mobile-model {small.folder}\n")
    refused = here("evaluate", small.folder, code=2)
    assert refused.out == ""
    assert "no three tiers" in refused.err


def test_one_layer_and_only_the_last_exit(tiny_backbone: Path, tmp_path: Path) -> None:
    chosen = options(tiny_backbone, epochs=1, max_rows=100)
    one = api.fit("reviews", out=tmp_path / "one", **chosen, layers=1)
    assert one.config.exits == (1,)
    with pytest.raises(RunError, match="1 layer makes no three tiers"):
        api.evaluate(one)
    last = api.fit("reviews", out=tmp_path / "last", **chosen, layers=2, exits="tiers")
    assert last.config.exits == (2,)
    assert ExitTable.load(last.folder / "exits" / "test.safetensors").layers == (2,)


def test_three_layers_make_a_run_like_any_other(tiny_backbone: Path, tmp_path: Path) -> None:
    chosen = options(tiny_backbone, epochs=1, layers=3, training="two-stage", exits="tiers")
    run = api.fit("reviews", out=tmp_path / "three", **chosen)
    assert run.config.depths == {"dc": Depths(1, 2, 3), "ee": Depths(1, 2, 3)}
    assert api.evaluate(run).rows


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": 0}, "--layers 0"),
        ({"layers": 9}, r"--layers 9 is more than .* has: give 1 to 4"),
        ({"layers": 2, "mobile_layers": 1}, r"--mobile-layers 1 .* three tiers.* 2 of the 3"),
        ({"layers": 2, "edge_layers": 2}, r"--edge-layers 2 .* three tiers"),
        ({"layers": 1, "training": "two-stage"}, r"two-stage.* single exit, after layer 1"),
        ({"layers": 2, "training": "two-stage", "exits": "tiers"}, r"two-stage.* 2: .*joint"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_read(
    tiny_backbone: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    notes, out = Notes(), tmp_path / "run"
    with pytest.raises(OptionError, match=message):
        api.fit("reviews", out=out, progress=notes, **options(tiny_backbone, **changes))
    assert notes.said == []
    assert not out.exists()


def test_layers_that_would_share_weights_differently_are_refused(
    tiny_backbone: Path, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_backbone)
    config = AlbertConfig(
        vocab_size=len(tokenizer),
        embedding_size=16,
        hidden_size=32,
        num_hidden_layers=6,
        num_hidden_groups=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
    )
    backbone = tmp_path / "albert"
    AlbertModel(config, add_pooling_layer=False).save_pretrained(backbone)
    tokenizer.save_pretrained(backbone)
    chosen = options(backbone, epochs=1, max_rows=60)
    with pytest.raises(OptionError, match=r"--layers 4: the first 4 of the 6 layers .* share"):
        api.fit("reviews", out=tmp_path / "four", layers=4, **chosen)
    assert not (tmp_path / "four").exists()
    # the first group alone can be written
    run = api.fit("reviews", out=tmp_path / "three", layers=3, **chosen)
    assert load_model(run.model_folder).model.adapter.order == (0, 0, 0)
    written = json.loads((run.model_folder / "config.json").read_text())
    assert (written["num_hidden_layers"], written["num_hidden_groups"]) == (3, 1)
