"""Sampling from a model: batched, with a key-value cache, and with tools that run at token level.

Sampling appends ids and never re-tokenises text (trl#5224). Each row has a seed of its own, so what it says depends on
neither the number of its neighbours nor when they end (but for the last bit of a sum that a batch orders differently).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from inference.tools import Tool, answer
from pipeline.errors import InputError
from tokenizer.bpe import Tokenizer
from tokenizer.chat import END_OF_TEXT, IM_END, OUTPUT, OUTPUT_END, PAD, TOOL, TOOL_END, call_of

TOGETHER = 256  # rows sampled at once: what a cache of them takes stays within some hundred MB for small models


@dataclass(frozen=True)
class Sampling:
    """How to sample: up to `max_new_tokens` ids, tool output among them; greedy at temperature 0.

    `top_k` 0, `top_p` 1 and `min_p` 0 cut nothing off (see `choose`). A row ends with its turn, or with the token that
    completes one of the texts `stop`.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    stop: tuple[str, ...] = ()


@dataclass
class Sample:
    """What followed a prompt: `ids`; `mask` 1 where the model chose the id itself; `logprobs` of each id.

    `logprobs` are the model's at the temperature of the call (greedy: at 1), before top-k and top-p cut it.
    `finished`: it ended its turn, or said a stop text; else it was cut at the limit. `tools`: calls it made.
    """

    ids: list[int] = field(default_factory=list)
    mask: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finished: bool = False
    tools: int = 0


class Sampler:
    """Samples of one model. With `tools`, a call pauses the row: its output follows, which the model did not write."""

    def __init__(self, model: nn.Module, tokenizer: Tokenizer, tools: Mapping[str, Tool] | None = None) -> None:
        self.model, self.tokenizer, self.tools = model, tokenizer, dict(tools or {})
        self._ends = {tokenizer.special(IM_END), tokenizer.special(END_OF_TEXT)}
        self._pad = tokenizer.special(PAD)
        self._call, self._call_end = tokenizer.special(TOOL), tokenizer.special(TOOL_END)
        self._window = int(model.config.max_position_embeddings)  # type: ignore[union-attr, arg-type]

    def many(self, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int]) -> list[Sample]:
        """As `sample`, of any number of prompts: so many at once that their cache does not fill the memory."""
        return [
            row
            for at in range(0, len(prompts), TOGETHER)
            for row in self.sample(prompts[at : at + TOGETHER], sampling, seeds[at : at + TOGETHER])
        ]

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        seeds: Sequence[int],
        stream: Callable[[int, int], None] | None = None,
    ) -> list[Sample]:
        """New ids after each prompt. `seeds`: one per prompt. `stream(row, id)` is called with each id as it comes.

        Raises `InputError` for a prompt that fills the model's window, beyond which no row goes.
        """
        if not prompts:
            return []
        longest = max(map(len, prompts))
        if longest >= self._window:
            raise InputError(
                f"a prompt of {longest} tokens fills the window of {self._window}", "shorten it, or widen model.window"
            )
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
        rows = [Sample() for _ in prompts]
        ids, seen = (tensor.to(device) for tensor in self._padded(prompts))
        draws = draws.to(device)
        positions = (seen.cumsum(1) - 1).clamp(min=0)
        cache = DynamicCache(config=self.model.config)  # type: ignore[arg-type]
        forced: list[list[int]] = [[] for _ in prompts]  # tool output still to be fed
        live = list(range(len(prompts)))
        for step in range(sampling.max_new_tokens):
            # 1. One forward pass over the newest column: [live rows, vocabulary] log-probabilities.
            logprobs = self._forward(ids, seen, positions, cache, sampling.temperature or 1.0)
            # 2. The model's choice for each row; where a tool's output is being fed, its next id instead.
            chosen = self._chosen(logprobs, draws[live, step], sampling)
            own = [not forced[row] for row in live]
            tokens = [token if mine else forced[row].pop(0) for row, token, mine in zip(live, chosen, own, strict=True)]
            said = logprobs.gather(1, torch.tensor(tokens, device=device)[:, None])[:, 0].tolist()
            # 3. Each row takes its id; one that closed a call is given the tool's output to be fed.
            for row, token, mine, logprob in zip(live, tokens, own, said, strict=True):
                self._take(rows[row], token, mine, logprob, sampling)
                if stream:
                    stream(row, token)
                if mine and self.tools and token == self._call_end:
                    forced[row] = self._output(rows[row])
            # 4. Rows that ended or filled the window leave the batch: they cost nothing from here on.
            going = [
                at
                for at, row in enumerate(live)
                if not rows[row].finished and len(prompts[row]) + len(rows[row].ids) < self._window
            ]
            if not going:
                break
            if len(going) < len(live):
                kept = torch.tensor(going, device=device)
                cache.batch_select_indices(kept)
                seen, positions = seen[kept], positions[kept]
                live = [live[at] for at in going]
            # 5. What was taken is the next column.
            ids = torch.tensor([[tokens[at]] for at in going], device=device)
            seen = torch.cat([seen, seen.new_ones((len(live), 1))], dim=1)
            positions = positions[:, -1:] + 1
        return rows

    def _padded(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Ids and attention mask [rows, longest], padded on the left, so that all rows go on at the same column."""
        longest = max(map(len, prompts))
        ids = torch.full((len(prompts), longest), self._pad)
        seen = torch.zeros((len(prompts), longest), dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = torch.tensor(prompt)
            seen[row, longest - len(prompt) :] = 1
        return ids, seen

    def _forward(self, ids: Tensor, seen: Tensor, positions: Tensor, cache: DynamicCache, temperature: float) -> Tensor:
        """Log-probabilities of the next id [rows, vocabulary], by fp32 log-softmax."""
        out = self.model(
            input_ids=ids,
            attention_mask=seen,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return torch.log_softmax(out.logits[:, -1].float() / temperature, dim=-1)

    @staticmethod
    def _chosen(logprobs: Tensor, draws: Tensor, sampling: Sampling) -> list[int]:
        greedy = not sampling.temperature
        ids = logprobs.argmax(-1) if greedy else choose(logprobs, draws, sampling.top_k, sampling.top_p, sampling.min_p)
        chosen: list[int] = ids.tolist()
        return chosen

    def _take(self, row: Sample, token: int, own: bool, logprob: float, sampling: Sampling) -> None:
        row.ids.append(token)
        row.mask.append(int(own))
        row.logprobs.append(logprob)
        row.finished = own and (token in self._ends or self._says(row.ids, sampling.stop))

    def _says(self, ids: list[int], stop: Sequence[str]) -> bool:
        """Whether the last id completes a stop text; each id but the last holds a byte of it at least."""
        return any(text in self.tokenizer.decode(ids[-len(text.encode()) :]) for text in stop)

    def _output(self, one: Sample) -> list[int]:
        """Run the tool of the call just closed; ids of its output. A call that never opened is an empty one."""
        one.tools += 1
        end = len(one.ids) - 1
        start = max((i for i, token in enumerate(one.ids) if token == self._call), default=end) + 1
        name, argument = call_of(self.tokenizer.decode(one.ids[start:end]))
        output = self.tokenizer.encode(answer(self.tools, name, argument))
        return [self.tokenizer.special(OUTPUT), *output, self.tokenizer.special(OUTPUT_END)]

    def text(self, one: Sample) -> str:
        """What was said, specials and tool calls left visible, the end of the turn left out."""
        return self.tokenizer.decode([token for token in one.ids if token not in self._ends])

    def answer(self, one: Sample) -> str:
        """What the model itself wrote after its last tool call."""
        last = max((i for i, own in enumerate(one.mask) if not own), default=-1)
        return self.tokenizer.decode([token for token in one.ids[last + 1 :] if token not in self._ends])


def seeds(key: str, count: int) -> list[int]:
    """Seeds of so many rows, by what the call is for: the same key gives the same ones, and more of them if asked."""
    return [int(seed) for seed in np.random.default_rng(list(key.encode())).integers(2**63, size=count)]


def choose(logprobs: Tensor, draws: Tensor, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> Tensor:
    """The id of each row of `logprobs` [rows, vocabulary] at its draw from [0, 1) of the cumulative distribution.

    Of the `top_k` likeliest ids with at least `min_p` times the likeliest one's chance (Nguyen et al. 2024,
    arXiv:2407.01082), those are kept whose likelier ones hold less than `top_p` together.
    """
    if top_k:
        least = logprobs.topk(min(top_k, logprobs.shape[1]), dim=-1).values[:, -1:]
        logprobs = logprobs.masked_fill(logprobs < least, -torch.inf)
    if min_p:
        least = logprobs.max(dim=-1, keepdim=True).values + math.log(min_p)
        logprobs = logprobs.masked_fill(logprobs < least, -torch.inf)
    chances = logprobs.double().softmax(-1)
    if top_p < 1.0:
        falling, order = chances.sort(dim=-1, descending=True, stable=True)
        before = falling.cumsum(-1) - falling
        chances = torch.zeros_like(chances).scatter(1, order, falling.masked_fill(before >= top_p, 0.0))
    rising = chances.cumsum(-1)
    found = torch.searchsorted(rising, (draws * rising[:, -1])[:, None], right=True)
    return found[:, 0].clamp(max=logprobs.shape[1] - 1)
