"""Dropout on random bytes: the right share, the right gradient, and torch's own generator."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn
from transformers import AutoModel, BertConfig, MPNetConfig

from dimec.training.model.dropout import ByteDropout, byte_dropout, use_byte_dropout


@pytest.mark.parametrize("p", [0.1, 0.25, 0.5, 0.9])
def test_share_and_scale_are_exact_for_the_rounded_rate(p: float) -> None:
    torch.manual_seed(0)
    n = 400_000
    dropped = byte_dropout(torch.ones(n), p)
    rounded = round(p * 256) / 256
    assert dropped.unique().tolist() == pytest.approx([0, 1 / (1 - rounded)])
    deviation = (rounded * (1 - rounded) / n) ** 0.5
    assert abs((dropped == 0).double().mean().item() - rounded) < 5 * deviation


def test_every_byte_of_a_draw_is_as_random_as_the_others() -> None:
    torch.manual_seed(0)
    kept = (byte_dropout(torch.ones(80_000, 8), 0.5) > 0).double().mean(0)
    assert (kept - 0.5).abs().max() < 5 * (0.25 / 80_000) ** 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(3, 5, 7), (1,), (0, 4), ()])
def test_gradient_is_the_scaled_mask(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x = torch.rand(shape, dtype=dtype).add(1).requires_grad_()
    dropped = byte_dropout(x, 0.5)
    assert dropped.dtype is dtype
    assert dropped.shape == x.shape
    dropped.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, (dropped > 0).to(dtype) * 2)
    torch.testing.assert_close(dropped, x * x.grad)


@pytest.mark.parametrize(("p", "factor"), [(0.0, 1.0), (0.001, 1.0), (1.0, 0.0)])
def test_nothing_or_everything(p: float, factor: float) -> None:
    assert torch.equal(byte_dropout(torch.ones(100), p), torch.full((100,), factor))


def test_the_generator_of_torch_reproduces_it() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, second = (byte_dropout(torch.ones(100), 0.5) for _ in range(2))
    assert not torch.equal(first, second)
    torch.set_rng_state(state)
    assert torch.equal(byte_dropout(torch.ones(100), 0.5), first)
    torch.manual_seed(5)
    assert torch.equal(byte_dropout(torch.ones(100), 0.5), first)


def test_modules_are_swapped_in_place() -> None:
    model = nn.Sequential(nn.Dropout(0.25), nn.ModuleDict({"a": nn.Dropout(0.5)}), nn.Linear(2, 2))
    names = list(model.state_dict())
    model[0].eval()
    use_byte_dropout(model)
    use_byte_dropout(model)
    swapped = {name: module for name, module in model.named_modules() if "Drop" in repr(module)}
    assert swapped["0"].p == 0.25
    assert swapped["1.a"].p == 0.5
    assert type(swapped["0"]) is type(swapped["1.a"]) is ByteDropout
    assert not swapped["0"].training
    assert swapped["1.a"].training
    assert list(model.state_dict()) == names


def test_evaluation_mode_drops_nothing() -> None:
    x = torch.ones(1000)
    assert ByteDropout(0.5).eval()(x) is x
    assert (ByteDropout(0.5)(x) == 0).any()


# MPNet's attention is written out in a module of its own, which transformers would complain about.
@pytest.mark.parametrize("family", [BertConfig, MPNetConfig])
def test_attention_weights_are_dropped_on_bytes_too(
    family: type[BertConfig] | type[MPNetConfig],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    config = family(
        vocab_size=9,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.5,
    )
    torch.manual_seed(0)
    model = AutoModel.from_config(config, attn_implementation="eager")  # type: ignore[no-untyped-call]
    use_byte_dropout(model)
    assert not caplog.records
    ids = torch.arange(8)[None]
    weights = model.train()(ids, output_attentions=True).attentions[0]
    certain = model.eval()(ids, output_attentions=True).attentions[0]
    torch.testing.assert_close(weights, torch.where(weights > 0, certain * 2, 0.0))
    assert 0.2 < (weights > 0).double().mean() < 0.8


def test_other_attention_is_left_alone() -> None:
    config = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
    model = AutoModel.from_config(config, attn_implementation="sdpa")  # type: ignore[no-untyped-call]
    use_byte_dropout(model)
    assert model.config._attn_implementation == "sdpa"
