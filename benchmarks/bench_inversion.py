"""How many words of a text a shipped hidden state gives away: a linear map and a look-up, no more.

For every layer a ridge regression learns, on the validation texts of a run, to map a token's hidden state, in FP16 as
it travels, to the embedding of its word; on the held-out texts the word with the nearest embedding (cosine) is guessed.
That is the least that somebody could do who knows the public encoder and has a few hundred texts; attacks of the
literature do more. Special tokens are left out. "Seen" are words that the validation texts have.

    python benchmarks/bench_inversion.py RUN
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dimec.data import tokenize
from dimec.runs.run import Run
from dimec.training.model import LoadedModel, load_model
from dimec.training.texts import split_texts

RIDGE = 1.0
CHUNK = 2_000


@dataclass(frozen=True)
class States:
    """Token ids [n], and by layer what the device would ship for each, [n, width]."""

    ids: NDArray[np.int64]
    hidden: dict[int, Tensor]


def main() -> None:
    run = Run.open(sys.argv[1])
    loaded = load_model(run.model_folder)
    known, held_out = (states_of(run, loaded, split) for split in ("validation", "test"))
    table = torch.nn.functional.normalize(loaded.model.word_embeddings.weight.detach(), dim=1)
    seen = np.isin(held_out.ids, known.ids)
    common = np.bincount(known.ids).argmax()
    print(
        f"{run.config.task.name}: {len(held_out.ids):,} tokens of the test texts, {seen.mean():.1%} of them seen in "
        f"the {len(known.ids):,} of validation; the most frequent is right for {(held_out.ids == common).mean():.1%}"
    )
    print("layer   recovered   of seen   of unseen")
    for layer, hidden in held_out.hidden.items():
        right = guess(fitted(known, layer, table), hidden, table) == held_out.ids
        print(f"{layer:5}{right.mean():12.1%}{right[seen].mean():10.1%}{right[~seen].mean():12.1%}")


@torch.inference_mode()
def states_of(run: Run, loaded: LoadedModel, split: str) -> States:
    """Run every text alone through every exit's layer."""
    assert split in ("validation", "test")
    dataset = split_texts(run, "validation" if split == "validation" else "test")
    tokens = tokenize(dataset, loaded.tokenizer, max_length=run.config.options.max_length)
    model = loaded.model.eval()
    special = set(loaded.tokenizer.all_special_ids)
    ids: list[NDArray[np.int64]] = []
    hidden: dict[int, list[Tensor]] = {layer: [] for layer in model.exits}
    for row, each in enumerate(tokens.input_ids):
        types = None if tokens.token_type_ids is None else tokens.token_type_ids[row]
        batch = torch.as_tensor(np.asarray(each, dtype=np.int64))[None]
        mask = torch.ones_like(batch)
        kinds = None if types is None else torch.as_tensor(np.asarray(types, dtype=np.int64))[None]
        kept = torch.tensor([int(token) not in special for token in each])
        state, _ = model.enter(batch, mask, kinds)
        after = 0
        for layer in model.exits:
            state, _ = model.segment(state, mask, after=after, layer=layer)
            hidden[layer].append(state[0, kept].half())
            after = layer
        ids.append(batch[0, kept].numpy())
    return States(
        np.concatenate(ids), {layer: torch.cat(parts).float() for layer, parts in hidden.items()}
    )


def fitted(known: States, layer: int, table: Tensor) -> Tensor:
    """Return the map [width + 1, embedding width] from states to embeddings."""
    states = with_one(known.hidden[layer])
    gram = states.T @ states + RIDGE * torch.eye(states.shape[1])
    solved: Tensor = torch.linalg.solve(gram, states.T @ table[torch.as_tensor(known.ids)])
    return solved


def guess(weights: Tensor, hidden: Tensor, table: Tensor) -> NDArray[np.int64]:
    """Return the nearest word to each mapped state."""
    parts = (with_one(part) @ weights @ table.T for part in hidden.split(CHUNK))
    return torch.cat([part.argmax(dim=1) for part in parts]).numpy()


def with_one(states: Tensor) -> Tensor:
    return torch.cat([states, torch.ones(len(states), 1)], dim=1)


if __name__ == "__main__":
    main()
