"""What lean runs inside the environment without extras.

    lean_check.py rooms PYPROJECT    import every module of the device-side rooms
    lean_check.py run FOLDER         write a finished run of made-up exit tables, for `dimec evaluate`
    lean_check.py bundle FOLDER      fit and export a tiny model, and write texts beside it; this one needs torch

The rooms are those of the import contract "device" in pyproject.toml, so that a room is named in one place.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
import tomllib
from pathlib import Path


def import_rooms(pyproject: Path) -> None:
    """Import them all, and stop where a library of an extra is installed."""
    contracts = tomllib.loads(pyproject.read_text())["tool"]["importlinter"]["contracts"]
    device = next(contract for contract in contracts if contract["id"] == "device")
    forbidden = device["forbidden_modules"]
    # tokenizers asks for it, though nothing here imports it.
    extras = [name for name in forbidden if name != "huggingface_hub"]
    installed = [name for name in extras if importlib.util.find_spec(name)]
    if installed:
        sys.exit(f"installed without extras: {', '.join(installed)}")
    package = importlib.import_module("dimec")
    if not Path(package.__file__ or "").is_relative_to(sys.prefix):
        sys.exit(f"imported from elsewhere: {package.__file__}")
    names = ["dimec"]
    # The verbs and the command line name training, but must load without it.
    for room in [*device["source_modules"], "dimec.api", "dimec.cli"]:
        module = importlib.import_module(room)
        names.append(room)
        for found in pkgutil.walk_packages(getattr(module, "__path__", []), f"{room}."):
            importlib.import_module(found.name)
            names.append(found.name)
    loaded = [name for name in forbidden if name in sys.modules]
    if loaded:
        sys.exit(f"imported by a device-side room: {', '.join(loaded)}")
    print(f"imported dimec {package.__version__}, {len(names)} modules: {' '.join(names)}")


def write_run(folder: Path) -> None:
    """Write exit tables in which deeper exits are right more often, and the config that goes with them."""
    import numpy as np

    from dimec.core.files import write_atomically
    from dimec.core.tiers import method_depths
    from dimec.runs.exit_table import Dynamics, ExitTable
    from dimec.runs.run import FORMAT, FitOptions, RunConfig, SplitInfo, TaskInfo

    rng = np.random.default_rng(0)
    n, layers, epochs = 600, (1, 2, 3, 4, 5, 6), 3
    for split in ("validation", "test"):
        labels = rng.integers(0, 2, size=n)
        signs = np.where(labels[:, None] == 1, 1.0, -1.0)
        margin = signs * rng.normal(np.linspace(0.4, 2.0, len(layers)), 1.0, (n, len(layers)))
        dynamics = rng.random((n, epochs, len(layers))).astype(np.float32)
        ExitTable(
            layers=layers,
            logits=np.stack([-margin, margin], axis=2).astype(np.float32),
            labels=labels.astype(np.int64),
            embeddings=rng.normal(size=(n, 8)).astype(np.float32),
            n_tokens=np.full(n, 16, dtype=np.int32),
            payload_bytes=np.full(n, 80, dtype=np.int32),
            row_ids=np.arange(n, dtype=np.int64),
            label_names=("negative", "positive"),
            dynamics=Dynamics(dynamics, dynamics > 0.5) if split == "validation" else None,
        ).save(folder / "exits" / f"{split}.safetensors")
    config = RunConfig(
        format=FORMAT,
        options=FitOptions(task="reviews", max_length=128),
        task=TaskInfo(
            name="reviews", label_names=("negative", "positive"), metric="accuracy", pairs=False
        ),
        source="made up",
        data_fingerprint="",
        backbone_fingerprint="",
        n_layers=len(layers),
        exits=layers,
        depths={method: method_depths(method, len(layers)) for method in ("dc", "ee")},
        pooling="mean",
        device="none",
        precision="fp32",
        share_cut=0.0,
        split=SplitInfo(kind="random", leaking_share=0.0),
        versions={},
        code_revision=None,
    )
    document = config.model_dump_json(indent=2)
    write_atomically(folder / "config.json", lambda path: path.write_text(document))


def write_bundle(folder: Path) -> None:
    """Fit a model of three narrow layers for an epoch and export it; its answers do not matter."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    from dimec import api
    from dimec.data import reviews

    texts = reviews().first[:400]
    words = {"[PAD]", "[UNK]", *(word for text in texts for word in text.split())}
    vocabulary = {word: code for code, word in enumerate(sorted(words))}
    backbone = folder.with_name("backbone")
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]"
    ).save_pretrained(backbone)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=16,
        pad_token_id=vocabulary["[PAD]"],
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(backbone)
    run = api.fit(
        "reviews",
        out=folder.with_name("fitted-run"),
        backbone=str(backbone),
        pooling="mean",
        max_rows=300,
        epochs=1,
    )
    api.export(run, out=folder)
    lines = [
        "text,label",
        *(f'"{text}",{code}' for text, code in zip(texts, reviews().labels[:400], strict=True)),
    ]
    folder.with_name("texts.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    {"rooms": import_rooms, "run": write_run, "bundle": write_bundle}[sys.argv[1]](
        Path(sys.argv[2])
    )
