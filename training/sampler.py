"""Sampling from a model: batched, with a key-value cache, and with a tool that runs at token level.

Sampling appends ids and never re-tokenises text (trl#5224). A row's draws come from its own seed, so that what a row
says does not depend on its neighbours' number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from tokenizer.bpe import Tokenizer
from tokenizer.chat import END_OF_TEXT, IM_END, OUTPUT, OUTPUT_END, PAD, TOOL, TOOL_END


@dataclass
class Sample:
    """What followed a prompt: `ids`; `mask` 1 where the model chose the id itself; `logprobs` of each id.

    `finished`: it ended its turn; else it was cut at the limit. `tools`: calls it made.
    """

    ids: list[int] = field(default_factory=list)
    mask: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finished: bool = False
    tools: int = 0


class Sampler:
    """Samples of one model. `tool` turns the text of a call into its output."""

    def __init__(self, model: nn.Module, tokenizer: Tokenizer, tool: Callable[[str], str] | None = None) -> None:
        self.model, self.tokenizer, self.tool = model, tokenizer, tool
        self._ends = {tokenizer.special(IM_END), tokenizer.special(END_OF_TEXT)}
        self._pad = tokenizer.special(PAD)

    @torch.no_grad()
    def sample(
        self, prompts: Sequence[Sequence[int]], most: int, temperature: float, seed: int, top_k: int = 0
    ) -> list[Sample]:
        """Up to `most` new ids after each prompt; greedy at temperature 0. Tool output counts among them."""
        was_training = self.model.training
        self.model.eval()
        rows = [Sample() for _ in prompts]
        generator = torch.Generator().manual_seed(seed)
        longest = max(map(len, prompts))
        ids = torch.full((len(prompts), longest), self._pad)
        seen = torch.zeros((len(prompts), longest), dtype=torch.long)
        for i, prompt in enumerate(prompts):  # padded on the left, so that all go on at the same column
            ids[i, longest - len(prompt) :] = torch.tensor(prompt)
            seen[i, longest - len(prompt) :] = 1
        device = next(self.model.parameters()).device
        cache = DynamicCache(config=self.model.config)  # type: ignore[arg-type]
        forced: list[list[int]] = [[] for _ in prompts]  # tool output still to be fed
        positions = (seen.cumsum(1) - 1).clamp(min=0)
        live = list(range(len(prompts)))
        for _ in range(most):
            out = self.model(
                input_ids=ids.to(device),
                attention_mask=seen.to(device),
                position_ids=positions.to(device),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            logprobs = torch.log_softmax(out.logits[:, -1].float().cpu(), dim=-1)
            # Drawn for all rows of the call, also those that ended: a row's draws must not depend on when others end.
            noise = torch.rand((len(prompts), logprobs.shape[1]), generator=generator)
            chosen = _choose(logprobs, noise[live], temperature, top_k)
            going: list[int] = []
            following: list[int] = []
            for at, row in enumerate(live):
                one = rows[row]
                if forced[row]:
                    token, own = forced[row].pop(0), 0
                else:
                    token, own = int(chosen[at]), 1
                one.ids.append(token)
                one.mask.append(own)
                one.logprobs.append(float(logprobs[at, token]))
                if own and token in self._ends:
                    one.finished = True
                    continue
                if own and self.tool and token == self.tokenizer.special(TOOL_END):
                    forced[row] = self._call(one)
                going.append(at)
                following.append(token)
            if not going:
                break
            if len(going) < len(live):
                kept = torch.tensor(going)
                cache.batch_select_indices(kept.to(device))
                seen, positions = seen[kept], positions[kept]
                live = [live[at] for at in going]
            ids = torch.tensor(following)[:, None]
            seen = torch.cat([seen, torch.ones((len(live), 1), dtype=torch.long)], dim=1)
            positions = positions[:, -1:] + 1
        self.model.train(was_training)
        return rows

    def _call(self, one: Sample) -> list[int]:
        """Run the tool on the call just closed; ids of its output. A call that never opened gives an error."""
        assert self.tool is not None
        one.tools += 1
        opened = self.tokenizer.special(TOOL)
        starts = [i for i, token in enumerate(one.ids) if token == opened]
        text = self.tokenizer.decode(one.ids[starts[-1] + 1 : -1]) if starts else ""
        output = self.tokenizer.encode(self.tool(text))
        return [self.tokenizer.special(OUTPUT), *output, self.tokenizer.special(OUTPUT_END)]

    def text(self, one: Sample) -> str:
        """What was said, specials and tool calls left visible, the end of the turn left out."""
        return self.tokenizer.decode([token for token in one.ids if token not in self._ends])

    def answer(self, one: Sample) -> str:
        """What the model itself wrote after its last tool call."""
        last = max((i for i, own in enumerate(one.mask) if not own), default=-1)
        return self.tokenizer.decode([token for token in one.ids[last + 1 :] if token not in self._ends])


def _choose(logprobs: Tensor, noise: Tensor, temperature: float, top_k: int) -> Tensor:
    """Draw by the Gumbel trick, or take the most probable at temperature 0."""
    if temperature == 0:
        return logprobs.argmax(-1)
    if top_k:
        least = logprobs.topk(top_k, dim=-1).values[:, -1:]
        logprobs = logprobs.masked_fill(logprobs < least, -torch.inf)
    gumbel = -torch.log(-torch.log(noise.clamp(min=1e-20, max=1 - 1e-7)))
    return (logprobs / temperature + gumbel).argmax(-1)
