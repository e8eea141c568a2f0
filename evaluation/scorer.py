"""Log-likelihoods of texts under a model, in batches.

The seam between context and continuation and the cut at the window are those of lm-evaluation-harness 0.4.13.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from inference.likelihood import LOGIT_BYTES, log_probabilities
from pipeline.errors import InputError
from tokenizer.bpe import Tokenizer

_TOKENS = 16_384  # of a batch: what its activations take stays within some hundred MB for small models


class Scorer:
    """Log-likelihoods under one model."""

    def __init__(self, model: nn.Module, tokenizer: Tokenizer) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.window = int(model.config.max_position_embeddings)  # type: ignore[union-attr, arg-type]

    def pair(self, context: str, continuation: str) -> tuple[list[int], int]:
        """Ids of both together, and how many of them are the continuation's; blanks at the seam belong to it."""
        bare = context.rstrip()
        continuation = context[len(bare) :] + continuation
        if not bare:
            own = self.tokenizer.encode(continuation)
            return [self.tokenizer.end_of_text, *own], len(own)
        whole = self.tokenizer.encode(bare + continuation)
        return whole, len(whole) - len(self.tokenizer.encode(bare))

    def windows(self, ids: list[int]) -> Iterator[tuple[list[int], int]]:
        """A text of any length in windows that tell each token once, the last with all the context it can have."""
        whole = [self.tokenizer.end_of_text, *ids]
        for start in range(1, len(whole), self.window):
            stop = min(start + self.window, len(whole))
            yield whole[max(0, stop - self.window - 1) : stop], stop - start

    @torch.no_grad()
    def score(self, rows: Sequence[tuple[list[int], int]]) -> list[tuple[float, bool]]:
        """Of the last so many tokens of each row: their log-likelihood in nats, and whether all are the likeliest.

        A row longer than the window loses its beginning; `InputError` where those tokens alone are longer.
        """
        if (longest := max((count for _, count in rows), default=0)) > self.window:
            raise InputError(f"a choice of {longest} tokens exceeds the window of {self.window}", "leave it out")
        device = next(self.model.parameters()).device
        vocabulary = int(self.model.config.vocab_size)  # type: ignore[union-attr, arg-type]
        found: list[tuple[float, bool]] = [(0.0, True)] * len(rows)
        was_training = self.model.training
        self.model.eval()
        waiting = sorted(range(len(rows)), key=lambda at: (len(rows[at][0]), at), reverse=True)
        while waiting:
            length = min(len(rows[waiting[0]][0]) - 1, self.window)
            size = max(1, _TOKENS // max(1, length))
            kept = max(rows[at][1] for at in waiting[:size])
            size = max(1, min(size, LOGIT_BYTES[device.type] // max(1, 4 * kept * vocabulary)))
            batch, waiting = waiting[:size], waiting[size:]
            self._score([rows[at] for at in batch], batch, found, device)
        self.model.train(was_training)
        return found

    def _score(
        self,
        rows: Sequence[tuple[list[int], int]],
        places: list[int],
        found: list[tuple[float, bool]],
        device: torch.device,
    ) -> None:
        cut = [ids[-self.window - 1 :] for ids, _ in rows]
        length, kept = max(len(ids) for ids in cut) - 1, max(count for _, count in rows)
        if length < 1 or kept < 1:
            return  # nothing is asked
        ids = torch.zeros((len(rows), length + 1), dtype=torch.long)
        seen = torch.zeros((len(rows), length), dtype=torch.long)
        for row, one in enumerate(cut):  # padded on the left, so that all continuations end together
            ids[row, length + 1 - len(one) :] = torch.tensor(one)
            seen[row, length + 1 - len(one) :] = 1
        ids, seen = ids.to(device), seen.to(device)
        logits: Tensor = self.model(
            input_ids=ids[:, :-1],
            attention_mask=seen,
            position_ids=(seen.cumsum(1) - 1).clamp(min=0),
            use_cache=False,
            logits_to_keep=kept,
        ).logits
        targets = ids[:, -kept:]
        told = log_probabilities(logits, targets).double()
        likeliest = logits.argmax(-1) == targets
        for row, (place, (_, count)) in enumerate(zip(places, rows, strict=True)):
            if count:
                found[place] = float(told[row, -count:].sum()), bool(likeliest[row, -count:].all())
