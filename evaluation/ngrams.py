"""Unigram and bigram models: the baselines that a trained model must beat."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_HELD_OUT = 0.1  # share of the training tokens on which the bigram's weight is fitted
_EM_STEPS = 50  # with one weight, EM has converged to six digits well before


class NgramTables:
    """A unigram model with add-one smoothing, and a bigram model interpolated with it (Jelinek & Mercer 1980).

    The weight of the interpolation is fitted by EM on held-out tokens. Costs are cross-entropies in nats per token, of
    `tokens[1:]`, as a language model's loss is.
    """

    def __init__(self, tokens: Ints, vocabulary: int) -> None:
        self.vocabulary = vocabulary
        # A bigram looks reliable on the tokens it was counted on, so the weight is fitted on others; then all count.
        cut = max(2, int(len(tokens) * (1 - _HELD_OUT)))
        self._count(tokens[:cut])
        self.weight = self._fit(tokens[cut - 1 :])
        self._count(tokens)

    def _count(self, tokens: Ints) -> None:
        counts = np.bincount(tokens, minlength=self.vocabulary)
        self._unigram: Floats = (counts + 1) / (len(tokens) + self.vocabulary)
        self._before = np.bincount(tokens[:-1], minlength=self.vocabulary)
        self._pairs, self._pair_counts = np.unique(self._pair(tokens), return_counts=True)

    def _pair(self, tokens: Ints) -> Ints:
        return tokens[:-1].astype(np.int64) * self.vocabulary + tokens[1:]

    def _bigram(self, tokens: Ints) -> Floats:
        """Relative frequency of each pair; 0 where it, or its first token, was never seen."""
        pairs = self._pair(tokens)
        at = np.minimum(np.searchsorted(self._pairs, pairs), len(self._pairs) - 1)
        counts = np.where(self._pairs[at] == pairs, self._pair_counts[at], 0)
        return np.asarray(counts / np.maximum(self._before[tokens[:-1]], 1), dtype=np.float64)

    def _fit(self, tokens: Ints) -> float:
        weight = 0.5
        if len(tokens) < 2:
            return weight
        # EM: the new weight is the mean probability that a token came from the bigram and not from the unigram.
        unigram, bigram = self._unigram[tokens[1:]], self._bigram(tokens)
        for _ in range(_EM_STEPS):
            mixed = weight * bigram
            weight = float(np.mean(mixed / (mixed + (1 - weight) * unigram)))
        # Below 1: only the unigram gives an unseen pair a probability above 0.
        return min(max(weight, 0.0), 1 - 1e-6)

    def unigram_cost(self, tokens: Ints) -> float:
        """Cross-entropy of the unigram model, in nats per token of `tokens[1:]`."""
        return float(-np.log(self._unigram[tokens[1:]]).mean())

    def bigram_cost(self, tokens: Ints) -> float:
        """Cross-entropy of the interpolated bigram model, in nats per token of `tokens[1:]`."""
        mixed = self.weight * self._bigram(tokens) + (1 - self.weight) * self._unigram[tokens[1:]]
        return float(-np.log(mixed).mean())


def bits_per_byte(cost: float, tokens: int, size: int) -> float:
    """Bits per byte from a `cost` in nats per token, where `tokens` tokens encode `size` bytes of text."""
    return cost * tokens / (math.log(2) * size)
