"""Learned bottlenecks between two layers of an encoder: a hidden state goes in, what the cloud restores comes out.

A bottleneck encodes each token's state into a few numbers, sends them through something that has no useful gradient
(rounding, a lossy code, a channel), and decodes what arrives. Whatever has no gradient passes it on unchanged:
*straight-through*. The papers' encoders and decoders are convolutions on images; here they are layers on each token.
Shapes: b samples, t tokens, padding included; d the encoder's width; w the bottleneck's width.
"""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dimec.runs.codes import RANGE_BYTES, Code
from dimec.runs.compressed import CompressOptions


class Bottleneck(nn.Module):
    """An encoder on token states, which the device runs, a decoder, which the cloud runs, and what lies between."""

    encoder: nn.Module
    decoder: nn.Module

    def reduce(self, states: Tensor) -> Tensor:
        """Turn states [b, t', d] into numbers [b, t', w], token by token, for a link that loses nothing."""
        numbers: Tensor = self.encoder(states)
        return numbers

    def restore(self, numbers: Tensor) -> Tensor:
        """Turn numbers as they arrive, [b, t', w], into states [b, t' pool, d]."""
        states: Tensor = self.decoder(numbers)
        return states

    def encode(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Turn states [b, t, d] with mask [b, t] into numbers [b, t', w]."""
        return self.reduce(hidden)

    @abstractmethod
    def send(self, numbers: Tensor, mask: Tensor, draws: torch.Generator | None = None) -> Tensor:
        """Return what arrives of numbers [b, t', w] that belong to tokens with mask [b, t].

        A random channel draws from ``draws``, by default from torch's global generator.
        """

    def decode(self, arrived: Tensor, n_tokens: int) -> Tensor:
        """Turn what arrived, [b, t', w], into states [b, n_tokens, d]."""
        return self.restore(arrived)[:, :n_tokens]

    @abstractmethod
    def size(self, numbers: Tensor, mask: Tensor) -> NDArray[np.int32]:
        """Return how many bytes each sample's numbers take on the way: [b]."""

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Send states [b, t, d] through and restore them."""
        arrived = self.send(self.encode(hidden.float(), mask), mask)
        return self.decode(arrived, hidden.shape[1])


class BottleNetUnit(Bottleneck):
    """BottleNet's unit: a reduction in width and, with a ``pool`` above one, in length; a byte a number; a lossy code.

    The paper's code is JPEG on the reduced feature map. What stands for its lossy part is rounding to ``levels`` of a
    byte's 256 values, for its lossless part deflate of a sample's bytes, channel by channel.
    """

    def __init__(self, d: int, width: int, *, pool: int, levels: int) -> None:
        """Take hidden states of width ``d``; ``pool`` tokens in a row become one."""
        super().__init__()
        self.pool, self.levels = pool, levels
        self.encoder = nn.Linear(d, width)
        self.decoder = nn.Sequential(nn.Linear(width, d), nn.LayerNorm(d))
        self.place = nn.Parameter(torch.zeros(pool, d))
        """What tells the tokens of a pool apart again."""

    def reduce(self, states: Tensor) -> Tensor:
        """Reduce, and squeeze into -1..1, which both sides know."""
        return torch.tanh(self.encoder(states))

    def encode(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Average each pool's tokens first."""
        return self.reduce(_pooled(hidden, mask, self.pool))

    def send(self, numbers: Tensor, mask: Tensor, draws: torch.Generator | None = None) -> Tensor:
        """Round to the levels; backwards the code is the identity."""
        return quantise(numbers, self.levels)

    def restore(self, numbers: Tensor) -> Tensor:
        """Expand, and give each token of a pool the pool's state with what is learnt of its place there."""
        states: Tensor = self.decoder[0](numbers).unsqueeze(2) + self.place  # type: ignore[index]
        whole: Tensor = self.decoder[1](states.flatten(1, 2))  # type: ignore[index]
        return whole

    def size(self, numbers: Tensor, mask: Tensor) -> NDArray[np.int32]:
        """Pack each sample as it travels, and count its bytes."""
        code = Code("bottlenet", numbers.shape[-1], pool=self.pool, levels=self.levels)
        samples, counts = numbers.detach().float().cpu().numpy(), mask.sum(1).tolist()
        packed = [
            len(code.pack(each[: code.length(n)])) for each, n in zip(samples, counts, strict=True)
        ]
        return np.array(packed, dtype=np.int32)


class BottleNetPpUnit(Bottleneck):
    """BottleNet++'s unit: encoder and decoder around a channel that is not trained.

    As in the authors' code the encoder is told how bad the channel is, and training draws that anew for each batch,
    evenly up to the worst; here it is tested at the worst.
    """

    def __init__(
        self, d: int, width: int, *, snr_db: float | None, erasure_rate: float | None
    ) -> None:
        """Take hidden states of width ``d`` and a channel: noise at ``snr_db``, else erasures."""
        super().__init__()
        self.snr_db = snr_db
        self.worst = noise_deviation(snr_db) if snr_db is not None else float(erasure_rate or 0.0)
        self.encoder = nn.Sequential(nn.Linear(d + 1, width), nn.LayerNorm(width))
        self.decoder = _decoder(d, width)
        self._condition = self.worst

    def encode(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Encode states beside the channel's condition: symbols of mean power one, or numbers from 0 to 1."""
        self._condition = self.worst * float(torch.rand(1)) if self.training else self.worst
        numbers = self._told(hidden, self._condition)
        return normalise_power(numbers, mask) if self.snr_db is not None else numbers.sigmoid()

    def reduce(self, states: Tensor) -> Tensor:
        """Encode states for a link that erases nothing: numbers from 0 to 1; symbols for noise need a whole sample."""
        assert self.snr_db is None
        return self._told(states, 0.0).sigmoid()

    def _told(self, states: Tensor, condition: float) -> Tensor:
        told = torch.full_like(states[..., :1], condition)
        encoded: Tensor = self.encoder(torch.cat([states, told], dim=-1))
        return encoded

    def send(self, numbers: Tensor, mask: Tensor, draws: torch.Generator | None = None) -> Tensor:
        """Send through the channel as it is in this batch."""
        if self.snr_db is not None:
            return add_noise(numbers, self._condition, draws)
        return erase_bits(numbers, self._condition, draws)

    def size(self, numbers: Tensor, mask: Tensor) -> NDArray[np.int32]:
        """Count a byte a symbol: what erasures take bits of, and what a modulator of eight bits is fed with."""
        return _fixed_rate(numbers, mask)


class BottleFitUnit(Bottleneck):
    """BottleFit's unit: a small encoder, a larger decoder, and a byte a number once it is trained.

    As in the authors' code the numbers are quantised after training, by each sample's own range.
    """

    def __init__(self, d: int, width: int) -> None:
        super().__init__()
        self.encoder = nn.Linear(d, width)
        self.decoder = _decoder(d, width)

    def send(self, numbers: Tensor, mask: Tensor, draws: torch.Generator | None = None) -> Tensor:
        """Quantise, except in training."""
        return numbers if self.training else to_bytes_and_back(numbers, mask)

    def size(self, numbers: Tensor, mask: Tensor) -> NDArray[np.int32]:
        """Count a byte a number, and the range."""
        return _fixed_rate(numbers, mask) + np.int32(RANGE_BYTES)


def build_bottleneck(options: CompressOptions, d: int) -> Bottleneck:
    """Build an untrained bottleneck for hidden states of width ``d`` from resolved options."""
    if options.kind == "bottlenet":
        assert options.pool is not None and options.levels is not None  # the options are resolved
        return BottleNetUnit(d, options.width, pool=options.pool, levels=options.levels)
    if options.kind == "bottlenet-pp":
        return BottleNetPpUnit(
            d, options.width, snr_db=options.snr_db, erasure_rate=options.erasure_rate
        )
    return BottleFitUnit(d, options.width)


def straight_through(value: Tensor, gradient_of: Tensor) -> Tensor:
    """Return ``value``, which backwards is ``gradient_of``."""
    return gradient_of + (value - gradient_of).detach()


def quantise(numbers: Tensor, levels: int) -> Tensor:
    """Round numbers from -1 to 1 to evenly spaced levels, straight-through."""
    codes = ((numbers.detach().clamp(-1, 1) + 1) / 2 * (levels - 1)).round()
    return straight_through(codes * (2 / (levels - 1)) - 1, numbers)


def to_bytes_and_back(numbers: Tensor, mask: Tensor) -> Tensor:
    """Round numbers [b, t, w] to 256 evenly spaced values between the least and the largest of each sample's tokens."""
    there = mask[..., None] > 0
    low = numbers.masked_fill(~there, torch.inf).amin((1, 2), keepdim=True)
    high = numbers.masked_fill(~there, -torch.inf).amax((1, 2), keepdim=True)
    step = ((high - low) / 255).clamp(min=1e-12)
    return ((numbers - low) / step).round().clamp(0, 255) * step + low


def noise_deviation(snr_db: float) -> float:
    """Return the deviation of the noise on symbols of mean power one: 10^(-SNR/20)."""
    return float(10 ** (-snr_db / 20))


def normalise_power(symbols: Tensor, mask: Tensor) -> Tensor:
    """Scale each sample's symbols [b, t, w] so that those of its tokens have mean power one."""
    weights = mask[..., None].float()
    power = (symbols.square() * weights).sum((1, 2), keepdim=True)
    power = power / (weights.sum((1, 2), keepdim=True) * symbols.shape[-1]).clamp(min=1)
    return symbols / power.clamp(min=1e-12).sqrt()


def add_noise(symbols: Tensor, deviation: float, draws: torch.Generator | None) -> Tensor:
    """Add white Gaussian noise."""
    noise = torch.randn(symbols.shape, generator=draws, dtype=symbols.dtype)
    return symbols + deviation * noise.to(symbols.device)


def erase_bits(numbers: Tensor, rate: float, draws: torch.Generator | None) -> Tensor:
    """Send numbers from 0 to 1 as bytes and erase each bit with probability ``rate``, straight-through.

    An erased bit counts half of its weight, as in the authors' code: what it is worth in the mean.
    """
    codes = (numbers.detach() * 255).round().to(torch.uint8)
    kept = torch.rand((8, *codes.shape), generator=draws) >= rate
    weights = (2 ** torch.arange(8, dtype=torch.int64)).view(8, *[1] * codes.ndim)
    left = (kept * weights).sum(0).to(torch.uint8).to(codes.device)
    arrived = ((codes & left).float() + (255 - left.float()) / 2) / 255
    return straight_through(arrived, numbers)


def _pooled(hidden: Tensor, mask: Tensor, pool: int) -> Tensor:
    """Average each ``pool`` tokens in a row of states [b, t, d]: [b, ceil(t / pool), d]; padding counts nothing."""
    if pool == 1:
        return hidden
    missing = -hidden.shape[1] % pool
    weights = nn.functional.pad(mask.float(), (0, missing)).unflatten(1, (-1, pool))
    states = nn.functional.pad(hidden, (0, 0, 0, missing)).unflatten(1, (-1, pool))
    total = weights.sum(2, keepdim=True).clamp(min=1)
    pooled: Tensor = (states * (weights / total)[..., None]).sum(2)
    return pooled


def _decoder(d: int, width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, d), nn.GELU(), nn.Linear(d, d), nn.LayerNorm(d))


def _fixed_rate(numbers: Tensor, mask: Tensor) -> NDArray[np.int32]:
    sizes: NDArray[np.int32] = (mask.sum(1) * numbers.shape[-1]).cpu().numpy().astype(np.int32)
    return sizes
