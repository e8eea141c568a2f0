"""Best-fit packing of rendered conversations into rows of one length."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenizer.chat import Rendered


@dataclass(frozen=True)
class Packed:
    """Rows [n, window + 1] of ids, loss mask and positions that restart at each conversation.

    `kept` conversations are in them; `dropped` counts the others by reason.
    """

    ids: Tensor
    mask: Tensor
    positions: Tensor
    kept: int
    dropped: dict[str, int]


def pack(conversations: Sequence[Rendered], window: int, pad: int) -> Packed:
    """Put each conversation, longest first, into the row with the least room that still holds it.

    One that is longer than a row, or has nothing to learn, is dropped and counted (nanochat#811). A row is
    `window` + 1 ids long, as in pretraining: its first id is never a target. Rows are in the order of the first
    conversation in each, so the result depends on nothing but the conversations' order.
    """
    length = window + 1
    # 1. What can be packed.
    dropped = {"too_long": 0, "nothing_to_learn": 0}
    fitting = []
    for number, conversation in enumerate(conversations):
        if len(conversation.ids) > length:
            dropped["too_long"] += 1
        elif not any(conversation.mask[1:]):  # the first id has no context to be predicted from
            dropped["nothing_to_learn"] += 1
        else:
            fitting.append(number)
    # 2. Best fit decreasing: the numbers of the conversations in each row.
    rows: list[list[int]] = []
    spaces: list[tuple[int, int]] = []  # (free ids, row), sorted, so that the best fit is found by bisection
    for number in sorted(fitting, key=lambda n: (-len(conversations[n].ids), n)):
        size = len(conversations[number].ids)
        best = bisect.bisect_left(spaces, (size, -1))
        if best < len(spaces):
            free, row = spaces.pop(best)
        else:
            free, row = length, len(rows)
            rows.append([])
        rows[row].append(number)
        bisect.insort(spaces, (free - size, row))
    rows.sort(key=min)
    # 3. The tensors.
    ids = torch.full((len(rows), length), pad, dtype=torch.long)
    mask = torch.zeros((len(rows), length), dtype=torch.long)
    positions = torch.zeros((len(rows), length), dtype=torch.long)
    for row, numbers in enumerate(rows):
        start = 0
        for number in numbers:
            conversation = conversations[number]
            end = start + len(conversation.ids)
            ids[row, start:end] = torch.tensor(conversation.ids)
            mask[row, start:end] = torch.tensor(conversation.mask)
            mask[row, start] = 0  # this id would be predicted from the conversation before
            positions[row, start:end] = torch.arange(end - start)
            start = end
        # Padding is one more document, of which no token is a target.
        positions[row, start:] = torch.arange(length - start)
    return Packed(ids, mask, positions, len(fitting), dropped)
