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
    """Rows [n, window + 1] of ids, loss mask and positions that restart at each conversation; and what was dropped."""

    ids: Tensor
    mask: Tensor
    positions: Tensor
    kept: int
    dropped: dict[str, int]


def pack(conversations: Sequence[Rendered], window: int, pad: int) -> Packed:
    """Put each conversation, longest first, into the row with the least room that still holds it.

    One that is longer than a row, or has nothing to learn, is dropped and counted (nanochat#811). A row is
    `window` + 1 ids long, as in pretraining: its first id is never a target. Rows come out in an order that depends on
    their content's order only.
    """
    length = window + 1
    dropped = {"too_long": 0, "nothing_to_learn": 0}
    fitting = []
    for number, one in enumerate(conversations):
        if len(one.ids) > length:
            dropped["too_long"] += 1
        elif not any(one.mask[1:]):
            dropped["nothing_to_learn"] += 1
        else:
            fitting.append(number)
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free ids, row), sorted
    for number in sorted(fitting, key=lambda n: (-len(conversations[n].ids), n)):
        size = len(conversations[number].ids)
        at = bisect.bisect_left(room, (size, -1))
        if at < len(room):
            free, row = room.pop(at)
        else:
            free, row = length, len(rows)
            rows.append([])
        rows[row].append(number)
        bisect.insort(room, (free - size, row))
    rows.sort(key=min)
    ids = torch.full((len(rows), length), pad, dtype=torch.long)
    mask = torch.zeros((len(rows), length), dtype=torch.long)
    positions = torch.zeros((len(rows), length), dtype=torch.long)
    for row, members in enumerate(rows):
        at = 0
        for number in members:
            one = conversations[number]
            end = at + len(one.ids)
            ids[row, at:end] = torch.tensor(one.ids)
            mask[row, at:end] = torch.tensor(one.mask)
            mask[row, at] = 0  # its target would be predicted from the conversation before
            positions[row, at:end] = torch.arange(end - at)
            at = end
        # Padding goes on counting from nothing, as one more document that nobody is asked about.
        positions[row, at:] = torch.arange(length - at)
    return Packed(ids, mask, positions, len(fitting), dropped)
