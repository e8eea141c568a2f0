"""Sampling from a model: batched, with a key-value cache, and with tools that run at token level.

Sampling appends ids and never re-tokenises text (trl#5224). Each row has a seed of its own, so what is sampled for a
prompt depends neither on how many rows share its batch nor on when they end (but for the last bit of a sum, since
kernels add in another order when the batch has another size).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from inference.tools import Tool, call_tool
from pipeline.errors import InputError
from tokenizer.bpe import Tokenizer
from tokenizer.chat import END_OF_TEXT, IM_END, OUTPUT, OUTPUT_END, PAD, TOOL, TOOL_END, parse_call

BATCH_ROWS = 256  # rows per batch in `sample_all`: their cache stays within some hundred MB for small models


@dataclass(frozen=True)
class Sampling:
    """How to sample: up to `max_new_tokens` ids, tool output included; greedy at temperature 0.

    `top_k` 0, `top_p` 1 and `min_p` 0 exclude nothing (see `choose`). A row ends at the end of its turn, or with the
    token that completes one of the texts `stop`.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    stop: tuple[str, ...] = ()


@dataclass
class Sample:
    """The continuation of a prompt: `ids`; `mask`, 1 where the model chose the id itself; `logprobs` of each id.

    `logprobs` are the model's at the temperature of the call (greedy: at 1), before top-k, top-p and min-p.
    `finished`: it ended its turn or completed a stop text, and was not cut at the limit. `tools`: number of tool calls.
    """

    ids: list[int] = field(default_factory=list)
    mask: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finished: bool = False
    tools: int = 0


class Sampler:
    """Samples from one model. With `tools`, a tool call pauses sampling of its row while the tool's output is fed."""

    def __init__(self, model: nn.Module, tokenizer: Tokenizer, tools: Mapping[str, Tool] | None = None) -> None:
        self.model, self.tokenizer, self.tools = model, tokenizer, dict(tools or {})
        self._ends = {tokenizer.special(IM_END), tokenizer.special(END_OF_TEXT)}
        self._pad = tokenizer.special(PAD)
        self._call, self._call_end = tokenizer.special(TOOL), tokenizer.special(TOOL_END)
        self.window = int(model.config.max_position_embeddings)  # type: ignore[union-attr, arg-type]

    def sample_all(self, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int]) -> list[Sample]:
        """As `sample`, for any number of prompts: in batches of `BATCH_ROWS`, so that their cache fits into memory."""
        return [
            row
            for start in range(0, len(prompts), BATCH_ROWS)
            for row in self.sample(prompts[start : start + BATCH_ROWS], sampling, seeds[start : start + BATCH_ROWS])
        ]

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        seeds: Sequence[int],
        stream: Callable[[int, int], None] | None = None,
    ) -> list[Sample]:
        """One sample per prompt, as one batch. `seeds`: one per prompt. `stream(row, id)` is called with each new id.

        Raises `InputError` for a prompt that fills the model's window; a row ends where it has filled it.
        """
        if not prompts:
            return []
        longest = max(map(len, prompts))
        if longest >= self.window:
            raise InputError(
                f"a prompt of {longest} tokens fills the window of {self.window}", "shorten it, or widen model.window"
            )
        # All random numbers are drawn before the first step, [rows, steps], by each row's own generator: what a row
        # samples at a step cannot depend on which other rows are still active then.
        draws = torch.from_numpy(
            np.stack(
                [
                    np.random.default_rng(seed).random(sampling.max_new_tokens)
                    for _, seed in zip(prompts, seeds, strict=True)
                ]
            )
        )
        was_training = self.model.training
        self.model.eval()
        try:
            return self._sample(prompts, sampling, draws, stream)
        finally:
            self.model.train(was_training)

    def _sample(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        draws: Tensor,
        stream: Callable[[int, int], None] | None,
    ) -> list[Sample]:
        device = next(self.model.parameters()).device
        samples = [Sample() for _ in prompts]
        # The first forward pass takes the prompts [rows, longest], every later one a single column [active rows, 1].
        ids, attention_mask = (tensor.to(device) for tensor in self._padded(prompts))
        draws = draws.to(device)
        positions = (attention_mask.cumsum(1) - 1).clamp(min=0)
        cache = DynamicCache(config=self.model.config)  # type: ignore[arg-type]
        pending: list[list[int]] = [[] for _ in prompts]  # per row: ids of a tool's output that are still to be fed
        active = list(range(len(prompts)))
        for step in range(sampling.max_new_tokens):
            # 1. One forward pass over the newest column: log-probabilities [active rows, vocabulary].
            logprobs = self._forward(ids, attention_mask, positions, cache, sampling.temperature or 1.0)
            # 2. The next id of each row: the model's choice, or the next one of a tool's output that is being fed.
            chosen = self._choose(logprobs, draws[active, step], sampling)
            sampled = [not pending[row] for row in active]
            tokens = [
                token if own else pending[row].pop(0) for row, token, own in zip(active, chosen, sampled, strict=True)
            ]
            column = torch.tensor(tokens, device=device)[:, None]
            token_logprobs = logprobs.gather(1, column)[:, 0].tolist()
            # 3. Append it to the row. Where it closes a tool call, run the tool and queue its output.
            for row, token, own, logprob in zip(active, tokens, sampled, token_logprobs, strict=True):
                self._append(samples[row], token, own, logprob, sampling)
                if stream:
                    stream(row, token)
                if own and self.tools and token == self._call_end:
                    pending[row] = self._run_tool(samples[row])
            # 4. Rows that have finished or filled the window leave the batch: they cost nothing from here on.
            kept = [
                place
                for place, row in enumerate(active)
                if not samples[row].finished and len(prompts[row]) + len(samples[row].ids) < self.window
            ]
            if not kept:
                break
            if len(kept) < len(active):
                index = torch.tensor(kept, device=device)
                cache.batch_select_indices(index)
                column, attention_mask, positions = column[index], attention_mask[index], positions[index]
                active = [active[place] for place in kept]
            # 5. The ids just appended are the next input.
            ids = column
            attention_mask = torch.cat([attention_mask, attention_mask.new_ones((len(active), 1))], dim=1)
            positions = positions[:, -1:] + 1
        return samples

    def _padded(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Ids and attention mask [rows, longest], padded on the left, so that all rows continue in the same column."""
        longest = max(map(len, prompts))
        ids = torch.full((len(prompts), longest), self._pad)
        attention_mask = torch.zeros((len(prompts), longest), dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = torch.tensor(prompt)
            attention_mask[row, longest - len(prompt) :] = 1
        return ids, attention_mask

    def _forward(
        self, ids: Tensor, attention_mask: Tensor, positions: Tensor, cache: DynamicCache, temperature: float
    ) -> Tensor:
        """Log-probabilities of the next id [rows, vocabulary], by fp32 log-softmax."""
        out = self.model(
            input_ids=ids,
            attention_mask=attention_mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,  # of the last column only: logits of a whole prompt would take most of the memory
        )
        return torch.log_softmax(out.logits[:, -1].float() / temperature, dim=-1)

    @staticmethod
    def _choose(logprobs: Tensor, draws: Tensor, sampling: Sampling) -> list[int]:
        greedy = not sampling.temperature
        ids = logprobs.argmax(-1) if greedy else choose(logprobs, draws, sampling.top_k, sampling.top_p, sampling.min_p)
        chosen: list[int] = ids.tolist()
        return chosen

    def _append(self, sample: Sample, token: int, own: bool, logprob: float, sampling: Sampling) -> None:
        sample.ids.append(token)
        sample.mask.append(int(own))
        sample.logprobs.append(logprob)
        sample.finished = own and (token in self._ends or self._completes(sample.ids, sampling.stop))

    def _completes(self, ids: list[int], stop: Sequence[str]) -> bool:
        """Whether the last id completes a stop text.

        A token holds at least one byte, so a text of n bytes lies within the last n ids: no more are decoded.
        """
        return any(text in self.tokenizer.decode(ids[-len(text.encode()) :]) for text in stop)

    def _run_tool(self, sample: Sample) -> list[int]:
        """Run the tool of the call just closed; returns the ids of its output. Without `<|tool|>` the call is empty."""
        sample.tools += 1
        end = len(sample.ids) - 1
        start = max((i for i, token in enumerate(sample.ids) if token == self._call), default=end) + 1
        name, argument = parse_call(self.tokenizer.decode(sample.ids[start:end]))
        output = self.tokenizer.encode(call_tool(self.tools, name, argument))
        return [self.tokenizer.special(OUTPUT), *output, self.tokenizer.special(OUTPUT_END)]

    def text(self, sample: Sample) -> str:
        """The whole sample as text: special tokens and tool calls are left visible, the end of the turn is left out."""
        return self.tokenizer.decode([token for token in sample.ids if token not in self._ends])

    def answer(self, sample: Sample) -> str:
        """What the model itself wrote after its last tool call."""
        last = max((i for i, own in enumerate(sample.mask) if not own), default=-1)
        return self.tokenizer.decode([token for token in sample.ids[last + 1 :] if token not in self._ends])


def seeds(key: str, count: int) -> list[int]:
    """Seeds of `count` rows, derived from the purpose `key`: a larger count only appends to those of a smaller one."""
    return [int(seed) for seed in np.random.default_rng(list(key.encode())).integers(2**63, size=count)]


def choose(logprobs: Tensor, draws: Tensor, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> Tensor:
    """Inverse-transform sampling: per row of `logprobs` [rows, vocabulary], the id at its draw from [0, 1), as [rows].

    Ids are restricted to the `top_k` likeliest, then to those with at least `min_p` times the largest probability
    (Nguyen et al. 2024, arXiv:2407.01082), then to the smallest set of likeliest ids whose probabilities reach
    `top_p` (Holtzman et al. 2020, arXiv:1904.09751).
    """
    if top_k:
        threshold = logprobs.topk(min(top_k, logprobs.shape[1]), dim=-1).values[:, -1:]
        logprobs = logprobs.masked_fill(logprobs < threshold, -torch.inf)
    if min_p:
        threshold = logprobs.max(dim=-1, keepdim=True).values + math.log(min_p)
        logprobs = logprobs.masked_fill(logprobs < threshold, -torch.inf)
    # In fp64: in fp32 an id less likely than 6e-8 would vanish from the cumulative sum.
    probabilities = logprobs.double().softmax(-1)
    if top_p < 1.0:
        # An id stays where the likelier ones together hold less than `top_p`; so the likeliest always stays.
        descending, order = probabilities.sort(dim=-1, descending=True, stable=True)
        before = descending.cumsum(-1) - descending
        kept = descending.masked_fill(before >= top_p, 0.0)
        probabilities = torch.zeros_like(probabilities).scatter(1, order, kept)
    # The draw is scaled by the total, which top-p makes smaller than 1. `right`: an id of probability 0 is never hit.
    cumulative = probabilities.cumsum(-1)
    ids = torch.searchsorted(cumulative, (draws * cumulative[:, -1])[:, None], right=True)
    return ids[:, 0].clamp(max=logprobs.shape[1] - 1)
