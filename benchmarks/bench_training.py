"""Training: a fit with all exits against the Hugging Face Trainer with one head, on the same rows of SST-2.

Both fine-tune the same backbone at batch 32 for the same number of epochs and are scored on the same test rows. The
Trainer runs at its defaults but for the batch size: full precision, padding to the longest row of a random batch;
`--bf16` lets it train in bfloat16, as ours does where the processor has it. Its one head looks at the mean over tokens,
as ours do, which suits these checkpoints. Rates are of the training loops alone, without loading, tokenising and
evaluation.

    DIMEC_DATA=... python benchmarks/bench_training.py [--rows 6000] [--epochs 2] [--seeds 1] [--backbone FOLDER]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from transformers import AutoModel, Trainer, TrainingArguments

from dimec import api
from dimec.data import load_dataset
from dimec.runs.run import Run
from dimec.training.model import find_backbone, load_backbone

RATE = 5e-5
BATCH = 32


class OneHead(nn.Module):
    """What a user would write around the backbone: one classifier on the mean over tokens."""

    def __init__(self, backbone: str) -> None:
        super().__init__()
        self.encoder = AutoModel.from_pretrained(find_backbone(backbone), add_pooling_layer=False)
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(self.encoder.config.hidden_size, 2)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        states = self.encoder(input_ids, attention_mask=attention_mask).last_hidden_state
        weights = (attention_mask / attention_mask.sum(1, keepdim=True)).unsqueeze(-1)
        logits = self.head(self.dropout((states * weights).sum(1)))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def with_trainer(run: Run, *, epochs: int, seed: int, bf16: bool) -> tuple[float, float]:
    """Return samples a second and test accuracy of the Trainer on the rows of a run."""
    source = load_dataset("sst2", data=run.config.options.data)
    split = json.loads((run.folder / "split.json").read_text())
    backbone = run.config.options.backbone
    tokenizer = load_backbone(backbone).tokenizer
    padding = tokenizer.pad_token_id

    def rows(ids: list[int]) -> Dataset:
        part = source.take(np.array(ids))
        encoded = tokenizer(list(part.first), truncation=True, max_length=128, padding=False)
        return Dataset.from_dict({"input_ids": encoded["input_ids"], "labels": part.labels})

    def collate(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        longest = max(len(row["input_ids"]) for row in batch)
        padded = [row["input_ids"] + [padding] * (longest - len(row["input_ids"])) for row in batch]
        ids = torch.tensor(padded)
        return {
            "input_ids": ids,
            "attention_mask": (ids != padding).long(),
            "labels": torch.tensor([row["labels"] for row in batch]),
        }

    torch.manual_seed(seed)
    scratch = tempfile.mkdtemp()
    trainer = Trainer(
        model=OneHead(backbone),
        args=TrainingArguments(
            output_dir=scratch,
            per_device_train_batch_size=BATCH,
            learning_rate=RATE,
            num_train_epochs=epochs,
            save_strategy="no",
            report_to="none",
            logging_strategy="no",
            disable_tqdm=True,
            remove_unused_columns=False,
            seed=seed,
            bf16=bf16,
        ),
        train_dataset=rows(split["train"]),
        data_collator=collate,
    )
    began = time.perf_counter()
    trainer.train()
    rate = epochs * len(split["train"]) / (time.perf_counter() - began)
    predicted = trainer.predict(rows(split["test"]))
    answers = np.asarray(predicted.predictions).argmax(axis=1)
    accuracy = float((answers == np.asarray(predicted.label_ids)).mean())
    shutil.rmtree(scratch, ignore_errors=True)
    return rate, accuracy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=6000)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--backbone", default="minilm")
    parser.add_argument("--bf16", action="store_true", help="the Trainer in bfloat16")
    chosen = parser.parse_args()
    root = os.environ.get("DIMEC_DATA")
    if not root:
        print("skipped: set DIMEC_DATA to a folder with the real data sets to run this benchmark")
        return
    print(
        f"{chosen.rows:,} rows of SST-2, {chosen.epochs} epochs, {torch.get_num_threads()} threads"
    )
    for seed in range(chosen.seeds):
        with tempfile.TemporaryDirectory() as folder:
            run = api.fit(
                "sst2",
                data=str(Path(root) / "glue" / "sst2"),
                out=Path(folder) / "run",
                split="random",
                backbone=chosen.backbone,
                pooling="mean",
                max_rows=chosen.rows,
                epochs=chosen.epochs,
                learning_rate=RATE,
                batch_size=BATCH,
                seed=seed,
            )
            logs = [json.loads(line) for line in (run.folder / "metrics.jsonl").open()]
            ours = float(np.mean([log["samples_per_second"] for log in logs]))
            accuracies = run.test.right.mean(axis=0)
            theirs, accuracy = with_trainer(run, epochs=chosen.epochs, seed=seed, bf16=chosen.bf16)
        exits = "  ".join(f"{each:.4f}" for each in accuracies)
        print(
            f"seed {seed}: dimec, every exit   {ours:6.1f} samples/s, test accuracy by exit {exits}"
        )
        print(
            f"seed {seed}: Trainer, one head   {theirs:6.1f} samples/s, test accuracy {accuracy:.4f}"
        )
        print(f"seed {seed}: ratio {ours / theirs:.2f}x", flush=True)


if __name__ == "__main__":
    main()
