"""What the multi-exit encoder promises beside agreeing with Hugging Face."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import pytest
import torch
from torch import nn

from dimec.core.errors import OptionError
from dimec.core.progress import SILENT
from dimec.training.dense_part import token_vectors
from dimec.training.model import ADAPTERS, MultiExitEncoder, Pooling
from dimec.training.model.encoder import AttentionHead
from tests.unit.encoders import small_bert

IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])


def encoder(exits: Sequence[int] = (1, 3), **options: Any) -> MultiExitEncoder:
    model = small_bert(layers=3, add_pooling_layer=False)
    given = {"n_classes": 2, "pooling": Pooling.MEAN, **options}
    return MultiExitEncoder(ADAPTERS["bert"](model), exits=exits, **given)


@pytest.mark.parametrize("exits", [(), (1, 2), (0, 3), (1, 1, 3), (3, 1), (1, 4)])
def test_exits_out_of_order_or_range_are_refused(exits: tuple[int, ...]) -> None:
    with pytest.raises(OptionError, match="between 1 and 3, the last of them 3") as caught:
        encoder(exits)
    assert (", ".join(map(str, exits)) or "none") in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"n_classes": 1}, "two or more classes, 1"), ({"head_dropout": 1.0}, "1.0, allowed")],
)
def test_other_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        encoder(**options)


def test_pooling_is_the_masked_mean_or_the_first_token() -> None:
    for pooling in (Pooling.MEAN, Pooling.CLS):
        model = encoder((3,), pooling=pooling).eval()
        hidden = model.adapter.model(IDS, attention_mask=MASK).last_hidden_state
        pooled = means_of(hidden) if pooling is Pooling.MEAN else hidden[:, 0]
        torch.testing.assert_close(model(IDS, MASK).logits[:, 0], model.heads["3"](pooled))


def test_exits_may_share_a_pooler_of_the_first_token() -> None:
    model = encoder((1, 3), pooling=Pooling.POOLER).eval()
    hidden = model.adapter.model(IDS, attention_mask=MASK).last_hidden_state
    first, last = (cast(nn.Sequential, model.heads[layer]) for layer in ("1", "3"))
    pooler, classify = cast(nn.Sequential, last[0]), last[2]
    torch.testing.assert_close(
        model(IDS, MASK).logits[:, 1], classify(torch.tanh(pooler[0](hidden[:, 0])))
    )
    assert first[0] is pooler and first[2] is not classify


def test_a_tokens_vector_is_the_mean_of_its_last_hidden_states(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = encoder((1, 3)).train()
    found = token_vectors(model, [2, 3], progress=SILENT)
    assert found is not None and found.shape == (50, 32)
    model.eval()
    for token in (0, 17, 49):
        ids = torch.tensor([[2, token, 3]])
        with torch.inference_mode():
            hidden = model.adapter.model(ids, attention_mask=torch.ones_like(ids))
        expected = hidden.last_hidden_state[0].mean(0)
        torch.testing.assert_close(torch.from_numpy(found[token]), expected, rtol=1e-4, atol=1e-5)
    monkeypatch.setattr("dimec.training.dense_part.MOST_TOKENS_KNOWN", 49)
    assert token_vectors(model, [2, 3], progress=SILENT) is None


def attentive() -> tuple[MultiExitEncoder, AttentionHead]:
    """Give an encoder with one exit that weighs tokens, and that exit."""
    model = encoder((3,), pooling=Pooling.ATTENTION).eval()
    head = model.heads["3"]
    assert isinstance(head, AttentionHead)
    return model, head


def means_of(hidden: torch.Tensor) -> torch.Tensor:
    return torch.stack([hidden[0].mean(0), hidden[1, :2].mean(0)])


def test_attention_weighs_the_tokens_of_each_part_by_the_softmax_of_its_scores() -> None:
    model, head = attentive()
    torch.nn.init.normal_(head.score.weight)  # queries that tell tokens apart
    hidden = model.adapter.model(IDS, attention_mask=MASK).last_hidden_state[1, :2]
    shares = (hidden @ head.score.weight.T + head.score.bias).exp()
    shares /= shares.sum(0)
    assert not torch.allclose(shares, torch.full_like(shares, 0.5), atol=0.05)
    parts = [shares[:, 0] @ hidden[:, :16], shares[:, 1] @ hidden[:, 16:]]  # two attention heads
    torch.testing.assert_close(
        model(IDS, MASK).logits[1, 0], head.classify(torch.cat(parts)), atol=1e-5, rtol=1e-4
    )


def test_untrained_attention_is_the_mean() -> None:
    model, head = attentive()
    pooled = means_of(model.adapter.model(IDS, attention_mask=MASK).last_hidden_state)
    torch.testing.assert_close(model(IDS, MASK).logits[:, 0], head.classify(pooled))


@pytest.mark.parametrize("pooling", Pooling)
def test_padding_changes_nothing(pooling: Pooling) -> None:
    model = encoder((3,), pooling=pooling)
    for head in model.heads.values():
        if isinstance(head, AttentionHead):
            torch.nn.init.normal_(head.score.weight)
    alone = model.eval()(IDS[1:, :2], MASK[1:, :2]).logits
    torch.testing.assert_close(model(IDS, MASK).logits[1:], alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("pooling", Pooling)
def test_exits_stay_in_full_precision_under_autocast(pooling: Pooling) -> None:
    model = encoder(pooling=pooling).eval()
    seen: list[torch.dtype] = []
    for module in model.heads["1"].modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(
                lambda _, inputs, output: seen.extend((inputs[0].dtype, output.dtype))
            )
    full = model(IDS, MASK)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(IDS, MASK)
        assert torch.is_autocast_enabled("cpu")
    assert set(seen) == {torch.float32}
    assert half.logits.dtype == half.embedding.dtype == torch.float32
    torch.testing.assert_close(half.logits, full.logits, atol=0.05, rtol=0.05)


@pytest.mark.parametrize(("pooling", "per_head"), [("mean", 2), ("cls", 2), ("attention", 4)])
def test_every_parameter_learns_and_belongs_to_the_backbone_or_to_a_head(
    pooling: str, per_head: int
) -> None:
    model = encoder(pooling=Pooling(pooling)).train()
    output = model(IDS, MASK)
    output.logits.sum().backward()
    assert not output.embedding.requires_grad
    assert all(parameter.grad is not None for parameter in model.parameters())
    backbone, heads = set(model.adapter.parameters()), set(model.heads.parameters())
    assert not backbone & heads
    assert backbone | heads == set(model.parameters())
    assert len(heads) == 2 * per_head
    assert model.word_embeddings.weight in backbone


@pytest.mark.parametrize("pooling", Pooling)
def test_a_row_of_nothing_but_padding_gives_no_nan(pooling: Pooling) -> None:
    output = encoder(pooling=pooling).eval()(IDS, MASK * torch.tensor([[1], [0]]))
    assert output.logits.isfinite().all()
    assert not output.embedding[1].any()
