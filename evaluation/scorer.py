"""Log-likelihoods of texts under a model, in batches.

How context and continuation are joined, and what is cut at the window, follows lm-evaluation-harness 0.4.13.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from inference.likelihood import LOGIT_BYTES, log_probabilities
from pipeline.errors import InputError
from tokenizer.bpe import Tokenizer

Row = tuple[list[int], int]  # ids, and how many of the last ones are scored
Score = tuple[float, bool]  # log-likelihood of those in nats, and whether each of them is the likeliest one
_BATCH_TOKENS = 16_384  # tokens per batch: activations stay within some hundred MB for small models


class Scorer:
    """Log-likelihoods under one model."""

    def __init__(self, model: nn.Module, tokenizer: Tokenizer) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.window = int(model.config.max_position_embeddings)  # type: ignore[union-attr, arg-type]

    def pair(self, context: str, continuation: str) -> Row:
        """The row of a continuation after a context. Blanks between the two count as the continuation's."""
        # A blank belongs to the token of the word after it; left to the context, it would be a token of its own, which
        # the model has hardly seen before a word.
        bare = context.rstrip()
        continuation = context[len(bare) :] + continuation
        if not bare:
            own = self.tokenizer.encode(continuation)
            return [self.tokenizer.end_of_text, *own], len(own)
        # Encoded together, as in training; what the context does not account for is the continuation.
        whole = self.tokenizer.encode(bare + continuation)
        return whole, len(whole) - len(self.tokenizer.encode(bare))

    def windows(self, ids: list[int]) -> Iterator[Row]:
        """Rows that together score each token of a text once. The last overlaps its predecessor, for more context."""
        whole = [self.tokenizer.end_of_text, *ids]
        for start in range(1, len(whole), self.window):
            stop = min(start + self.window, len(whole))
            yield whole[max(0, stop - self.window - 1) : stop], stop - start

    @torch.no_grad()
    def score(self, rows: Sequence[Row]) -> list[Score]:
        """The score of each row.

        A row longer than the window loses its beginning. Raises `InputError` where the scored tokens alone exceed it.
        """
        if (longest := max((count for _, count in rows), default=0)) > self.window:
            raise InputError(f"a choice of {longest} tokens exceeds the window of {self.window}", "leave the item out")
        device = next(self.model.parameters()).device
        vocabulary = int(self.model.config.vocab_size)  # type: ignore[union-attr, arg-type]
        scores: list[Score] = [(0.0, True)] * len(rows)
        # Longest first: rows of a batch are of like length, so little is padding, and if memory does not suffice, the
        # first batch already fails.
        remaining = sorted(range(len(rows)), key=lambda row: (len(rows[row][0]), row), reverse=True)
        was_training = self.model.training
        self.model.eval()
        try:
            while remaining:
                # Two bounds: the activations of all tokens, and the logits of the scored ones [rows, kept, vocabulary].
                length = min(len(rows[remaining[0]][0]) - 1, self.window)
                size = max(1, _BATCH_TOKENS // max(1, length))
                kept = max(rows[row][1] for row in remaining[:size])
                size = max(1, min(size, LOGIT_BYTES[device.type] // max(1, 4 * kept * vocabulary)))
                batch, remaining = remaining[:size], remaining[size:]
                for row, score in zip(batch, self._score([rows[row] for row in batch], device), strict=True):
                    scores[row] = score
        finally:
            self.model.train(was_training)
        return scores

    def _score(self, rows: Sequence[Row], device: torch.device) -> list[Score]:
        """The scores of one batch."""
        # 1. Cut each row at the window: the last id is only a target, so one more than the window stays.
        cut = [ids[-self.window - 1 :] for ids, _ in rows]
        length, kept = max(len(ids) for ids in cut) - 1, max(count for _, count in rows)
        if length < 1 or kept < 1:
            return [(0.0, True)] * len(rows)  # no row has a token to be scored
        # 2. Pad on the left, so that the scored tokens of all rows are the last columns: [rows, length + 1].
        ids = torch.zeros((len(rows), length + 1), dtype=torch.long)
        attention_mask = torch.zeros((len(rows), length), dtype=torch.long)
        for row, own in enumerate(cut):
            ids[row, length + 1 - len(own) :] = torch.tensor(own)
            attention_mask[row, length + 1 - len(own) :] = 1
        ids, attention_mask = ids.to(device), attention_mask.to(device)
        # 3. One forward pass; logits [rows, kept, vocabulary] of the columns that predict the last `kept` ids.
        logits: Tensor = self.model(
            input_ids=ids[:, :-1],
            attention_mask=attention_mask,
            position_ids=(attention_mask.cumsum(1) - 1).clamp(min=0),
            use_cache=False,
            logits_to_keep=kept,
        ).logits
        # 4. Sum each row over its own count of scored tokens; in fp64, so that a long sum keeps its digits.
        targets = ids[:, -kept:]
        logprobs = log_probabilities(logits, targets).double()
        likeliest = logits.argmax(-1) == targets
        return [
            (float(logprobs[row, -count:].sum()), bool(likeliest[row, -count:].all())) if count else (0.0, True)
            for row, (_, count) in enumerate(rows)
        ]
