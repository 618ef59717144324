"""What every test shares: quiet libraries, hypothesis without a clock, and the real data sets."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

from tests.commands import here  # noqa: F401  pytest finds its fixtures and hooks here
from tests.hub_cache import hub_cache  # noqa: F401
from tests.strict import (  # noqa: F401
    pytest_make_collect_report,
    pytest_runtest_makereport,
)

if TYPE_CHECKING:
    import onnx_ir
    from torch import Tensor, nn

    from dimec.bundle import Bundle
    from dimec.runs.run import Run

# Before any test imports the libraries that read them.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Models are tiny here: threads gain nothing, and wait for each other without end on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# No test asserts a wall-clock time; the same examples on every machine.
settings.register_profile("dimec", deadline=None, derandomize=True)
settings.load_profile("dimec")


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Give the folder with the real data sets, or skip."""
    folder = os.environ.get("DIMEC_DATA")
    if not folder:
        pytest.skip("set DIMEC_DATA to a folder with the real data sets to run this test")
    root = Path(folder)
    if not root.is_dir():
        pytest.fail(f"DIMEC_DATA is {folder}, which is no folder")
    return root


@pytest.fixture(scope="session")
def traced_once() -> Iterator[None]:
    """Trace like graphs once in a process, which takes seconds; every export still holds its own against torch."""
    from dimec.deploying import graphs

    trace = graphs._trace
    made: dict[str, onnx_ir.Model] = {}
    held: dict[str, dict[str, Tensor]] = {}

    def traced(module: nn.Module, *how: Any) -> onnx_ir.Model:
        key, own = repr((module, list(how[0]), how[1])), {}
        if isinstance(module, graphs._Segment):
            own = module.weights()
            config = module.model.adapter.config.to_dict() | {"_name_or_path": ""}
            key += repr((module.kind(), sorted(map(str, config.items()))))
        else:
            for name, each in module.state_dict().items():
                key += name + hashlib.sha256(each.numpy().tobytes()).hexdigest()
        if key in made:
            model = made[key].clone()
            if not own or graphs._fill(model, held[key], own):
                return model
        made[key] = trace(module, *how)
        held[key] = {name: each.clone() for name, each in own.items()}
        return made[key].clone()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graphs, "_trace", traced)
        yield


def untrained_bert(folder: Path, *, layers: int, width: int) -> Path:
    """Save an untrained BERT of two heads, with the real MiniLM's tokenizer."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertModel

    from dimec.training.model import find_backbone

    tokenizer = AutoTokenizer.from_pretrained(find_backbone("minilm"))
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=2 * width,
        max_position_embeddings=128,
    )
    torch.manual_seed(0)
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory: pytest.TempPathFactory, traced_once: None) -> Path:
    """Give a folder with an untrained BERT of four narrow layers."""
    return untrained_bert(tmp_path_factory.mktemp("backbone"), layers=4, width=32)


@pytest.fixture(scope="session")
def tiny_run(tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Give a finished run on some of the built-in reviews; tests only read it."""
    from dimec import api

    return api.fit(
        "reviews",
        out=tmp_path_factory.mktemp("runs") / "tiny",
        backbone=str(tiny_backbone),
        pooling="mean",
        max_length=128,
        max_rows=600,
        epochs=2,
        head_learning_rate=0.01,
    )


@pytest.fixture(scope="session")
def tiny_export(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Give the tiny run's bundle with the router of data cartography; tests only read it."""
    from dimec import api
    from dimec.bundle import load_bundle

    folder = tmp_path_factory.mktemp("bundles") / "export"
    api.export(tiny_run, out=folder, policy="dimec-dc-fixed")
    return load_bundle(folder)


@pytest.fixture(scope="session")
def tiny_bundle(
    tiny_run: Run, tiny_export: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    """Give the tiny run's bundle with a policy that uses every tier and every exit; tests only read it."""
    from tests.bundles import over_all_tiers, with_policy

    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    return with_policy(tiny_export, folder, over_all_tiers(tiny_run))


@pytest.fixture(scope="session")
def pair_bundle(tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Give a bundle of pairs of texts with a policy over all tiers; tests only read it."""
    from tests.bundles import fitted_to_pairs

    return fitted_to_pairs(tiny_backbone, tmp_path_factory.mktemp("pairs"))[1]
