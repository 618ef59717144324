"""Every family against the Hugging Face model it wraps, on tiny random weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import AutoConfig, AutoModel, PreTrainedModel, PreTrainedTokenizerFast

from dimec.training.model import (
    ADAPTERS,
    Adapter,
    MultiExitEncoder,
    Pooling,
    load_model,
    save_model,
)
from dimec.training.model.dropout import use_byte_dropout

LAYERS = 4
LENGTHS = (20, 3, 11, 1)
SHAPE = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
FRAMES = {"bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
# Model type, and what its config needs besides the shape; the names say what is special about a case.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("bert", {}),
    "roberta": ("roberta", {"pad_token_id": 1, "type_vocab_size": 1}),
    "xlm-roberta": ("xlm-roberta", {"pad_token_id": 1, "type_vocab_size": 1}),
    "camembert": ("camembert", {"pad_token_id": 1, "type_vocab_size": 1}),
    "distilbert": ("distilbert", {}),
    "electra-narrow": ("electra", {"embedding_size": 16}),
    "electra-even": ("electra", {"embedding_size": 32}),
    "albert": ("albert", {"embedding_size": 16}),
    "albert-two-groups": ("albert", {"embedding_size": 16, "num_hidden_groups": 2}),
    "albert-even": ("albert", {"embedding_size": 32}),
    "mpnet": ("mpnet", {"pad_token_id": 1}),
    # Sees 2 tokens to either side in its local layers, so 20 tokens tell local from global.
    "modernbert": ("modernbert", {"local_attention": 4, "global_attn_every_n_layers": 3, **FRAMES}),
}


@dataclass(frozen=True)
class Family:
    name: str
    reference: PreTrainedModel
    adapter: Adapter

    @property
    def pad_id(self) -> int:
        return int(self.adapter.config.pad_token_id)

    def batch(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Input ids, mask and, where the encoder takes them, types of samples of mixed lengths."""
        generator = torch.Generator().manual_seed(1)
        ids = torch.randint(5, 100, (len(LENGTHS), max(LENGTHS)), generator=generator)
        mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()
        types = (torch.arange(max(LENGTHS)) >= 2).long() * mask
        ids = ids * mask + self.pad_id * (1 - mask)
        return ids, mask, types if self.adapter.accepts_token_types else None

    def encoder(self, pooling: Pooling = Pooling.MEAN) -> MultiExitEncoder:
        torch.manual_seed(2)
        return MultiExitEncoder(self.adapter, exits=(1, 2, 4), n_classes=3, pooling=pooling).eval()


def build(model_type: str, **special: Any) -> tuple[PreTrainedModel, Adapter]:
    config = AutoConfig.for_model(model_type, **{**SHAPE, **special})
    adapter_class = ADAPTERS[model_type]
    torch.manual_seed(0)
    model = AutoModel.from_config(  # type: ignore[no-untyped-call]
        config, attn_implementation="eager", **adapter_class.arguments
    )
    with torch.no_grad():
        # Fresh models have zero biases, unit norms and small weights: too tame to show a mistake.
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval(), adapter_class(model)


def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(100)}, unk_token="w4"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=words, unk_token="w4", pad_token="w0"
    )


@pytest.fixture(scope="module", autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    model_type, special = FAMILIES[request.param]
    return Family(request.param, *build(model_type, **special))


def keywords(batch: tuple[Tensor, Tensor, Tensor | None]) -> dict[str, Tensor]:
    ids, mask, types = batch
    inputs = {"input_ids": ids, "attention_mask": mask}
    return inputs if types is None else {**inputs, "token_type_ids": types}


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_every_supported_type_is_tested() -> None:
    assert {model_type for model_type, _ in FAMILIES.values()} == ADAPTERS.keys()


def test_says_what_it_is(family: Family) -> None:
    config, adapter = family.reference.config, family.adapter
    assert adapter.n_layers == LAYERS
    assert adapter.width == 32
    assert adapter.embedding_width == getattr(config, "embedding_size", 32)
    assert tuple(adapter.word_embeddings.weight.shape) == (100, adapter.embedding_width)
    offset = family.name in ("roberta", "xlm-roberta", "camembert", "mpnet")
    assert adapter.max_tokens == (62 if offset else 64)
    typed = ("bert", "electra", "albert")
    assert adapter.accepts_token_types == family.name.startswith(typed)


def test_hidden_states_equal_the_reference_after_every_layer(family: Family) -> None:
    ids, mask, types = family.batch()
    reference = family.reference(**keywords(family.batch()), output_hidden_states=True)
    adapter = family.adapter
    hidden = adapter.enter(adapter.embed(ids, mask, types))
    context = adapter.context(hidden, mask)
    close(hidden, reference.hidden_states[0])
    for index in range(LAYERS):
        hidden = adapter.layer(index, hidden, context)
        if index < LAYERS - 1:  # the reference gives its last state finished
            close(hidden, reference.hidden_states[index + 1])
    close(adapter.finish(hidden), reference.last_hidden_state)


def test_the_sequence_is_long_enough_for_local_attention() -> None:
    special = FAMILIES["modernbert"][1]
    narrow = build("modernbert", **special)[0]
    wide = build("modernbert", **{**special, "local_attention": 60})[0]
    ids = torch.arange(5, 25)[None]
    assert not torch.allclose(narrow(ids).last_hidden_state, wide(ids).last_hidden_state, atol=1e-3)


@pytest.mark.parametrize("pooling", Pooling)
def test_pieces_say_what_the_whole_says(family: Family, pooling: Pooling) -> None:
    encoder, batch = family.encoder(pooling), family.batch()
    whole = encoder(*batch)
    assert whole.logits.shape == (len(LENGTHS), 3, 3)
    hidden, embedding = encoder.enter(*batch)
    close(embedding, whole.embedding)
    after = 0
    for place, layer in enumerate(encoder.exits):
        hidden, logits = encoder.segment(hidden, batch[1], after=after, layer=layer)
        close(logits, whole.logits[:, place])
        after = layer


def first_layers(encoder: MultiExitEncoder, depth: int) -> MultiExitEncoder:
    exits = [layer for layer in encoder.exits if layer <= depth]
    shorter = MultiExitEncoder(
        encoder.adapter.keep(depth), exits=exits, n_classes=3, pooling=encoder.pooling
    )
    for layer in map(str, exits):
        shorter.heads[layer].load_state_dict(encoder.heads[layer].state_dict())
    return shorter.eval()


@pytest.mark.parametrize("depth", [1, 2])
def test_the_first_layers_say_what_the_whole_says_and_save(
    family: Family, depth: int, tmp_path: Path
) -> None:
    encoder, batch = family.encoder(), family.batch()
    shorter = first_layers(encoder, depth)
    close(shorter(*batch).logits, encoder(*batch).logits[:, :depth])
    assert shorter.adapter.n_layers == shorter.adapter.config.num_hidden_layers == depth
    shares_everything = family.name in ("albert", "albert-even")
    sizes = [sum(map(torch.numel, each.adapter.parameters())) for each in (shorter, encoder)]
    assert (sizes[0] < sizes[1]) is not shares_everything
    save_model(shorter, tmp_path / "model", tokenizer=tokenizer(), label_names="abc")
    close(load_model(tmp_path / "model").model(*batch).logits, shorter(*batch).logits)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    for parameter in shorter.parameters():
        parameter.zero_()
    after = encoder.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert encoder.adapter.config.num_hidden_layers == LAYERS


def test_first_layers_of_albert_that_plain_code_would_order_differently_are_told() -> None:
    adapter = build("albert", embedding_size=16, num_hidden_groups=2, num_hidden_layers=6)[1]
    assert adapter.keep(5).order == (0, 0, 0, 1, 1)
    assert adapter.keep(5).is_plain
    assert not adapter.keep(4).is_plain


def test_padding_changes_nothing(family: Family) -> None:
    encoder, (ids, mask, types) = family.encoder(), family.batch()
    padded = encoder(ids, mask, types)
    for row, length in enumerate(LENGTHS):
        single = slice(row, row + 1)
        alone = encoder(
            ids[single, :length],
            mask[single, :length],
            None if types is None else types[single, :length],
        )
        close(alone.logits, padded.logits[single])
        close(alone.embedding, padded.embedding[single])


# The others project their embedding before it becomes the first hidden state.
@pytest.mark.parametrize(
    "family",
    ["bert", "roberta", "distilbert", "electra-even", "mpnet", "modernbert"],
    indirect=True,
)
def test_embedding_is_the_masked_mean_of_the_first_hidden_state(family: Family) -> None:
    batch = family.batch()
    first = family.reference(**keywords(batch), output_hidden_states=True).hidden_states[0]
    mask = batch[1][..., None]
    close(family.encoder()(*batch).embedding, (first * mask).sum(1) / mask.sum(1))


def test_saved_and_loaded_it_says_the_same(family: Family, tmp_path: Path) -> None:
    encoder, batch = family.encoder(), family.batch()
    save_model(encoder, tmp_path / "model", tokenizer=tokenizer(), label_names=["a", "b", "c"])
    assert [path.name for path in tmp_path.iterdir()] == ["model"]

    loaded = load_model(tmp_path / "model")
    assert loaded.label_names == ("a", "b", "c")
    torch.testing.assert_close(loaded.model(*batch).logits, encoder(*batch).logits, atol=0, rtol=0)
    assert loaded.tokenizer("w7 w8")["input_ids"] == [7, 8]
    typed = "token_type_ids" in loaded.tokenizer("w7")
    assert typed is family.adapter.accepts_token_types

    plain = AutoModel.from_pretrained(tmp_path / "model", attn_implementation="eager").eval()
    close(
        plain(**keywords(batch)).last_hidden_state,
        family.reference(**keywords(batch)).last_hidden_state,
    )


def test_tokens_are_of_type_0_without_token_types(family: Family) -> None:
    ids, mask, types = family.batch()
    if types is not None:
        close(
            family.encoder()(ids, mask).logits,
            family.encoder()(ids, mask, torch.zeros_like(ids)).logits,
        )


def test_sdpa_gives_the_same(family: Family) -> None:
    batch = family.batch()
    eager = family.encoder()(*batch).logits
    family.reference.set_attn_implementation("sdpa")
    try:
        close(family.encoder()(*batch).logits, eager)
    finally:
        family.reference.set_attn_implementation("eager")


def test_byte_dropout_changes_training_only(family: Family) -> None:
    encoder, batch = first_layers(family.encoder(), 2), family.batch()
    plain = encoder(*batch).logits
    use_byte_dropout(encoder)
    close(encoder(*batch).logits, plain)
    assert family.reference.config._attn_implementation == "eager"

    def train() -> Tensor:
        torch.manual_seed(4)
        logits: Tensor = encoder.train()(*batch).logits
        return logits

    assert torch.equal(train(), train())
    assert not torch.allclose(train(), plain)
