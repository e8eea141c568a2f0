"""Packing: no conversation is lost or doubled, and none attends to another in its row."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inference import network
from pipeline.recipe import Model
from tokenizer.chat import Rendered
from training.data.packing import pack

PAD, WINDOW = 1, 15
CONFIG = Model(preset="qwen3", layers=2, width=32, heads=2, kv_heads=1, head_dim=16, mlp_width=64, window=32, tied=True)


def conversation(size: int, first: int) -> Rendered:
    """`size` ids from `first` on, the second half of them with loss."""
    return Rendered(list(range(first, first + size)), [int(2 * i >= size) for i in range(size)])


@given(st.lists(st.integers(2, 24), max_size=40))
def test_every_conversation_is_in_one_row_or_counted(sizes: list[int]) -> None:
    conversations = [conversation(size, 100 * (n + 1)) for n, size in enumerate(sizes)]
    packed = pack(conversations, WINDOW, PAD)
    fitting = [one for one in conversations if len(one.ids) <= WINDOW + 1]
    assert packed.kept == len(fitting)
    assert packed.dropped == {"too_long": len(conversations) - len(fitting), "nothing_to_learn": 0}
    assert packed.ids.shape == packed.mask.shape == packed.positions.shape
    assert sorted(packed.ids[packed.ids != PAD].tolist()) == sorted(i for one in fitting for i in one.ids)
    for one in fitting:
        row, start = (packed.ids == one.ids[0]).nonzero()[0].tolist()
        end = start + len(one.ids)
        assert packed.ids[row, start:end].tolist() == one.ids
        assert packed.mask[row, start:end].tolist() == one.mask
        assert packed.positions[row, start:end].tolist() == list(range(len(one.ids)))
    assert not packed.mask[packed.ids == PAD].any()
    # Best fit: no two rows would fit into one.
    used = sorted((packed.ids != PAD).sum(1).tolist())
    assert len(used) < 2 or used[0] + used[1] > WINDOW + 1


def test_a_conversation_with_nothing_to_learn_is_counted() -> None:
    packed = pack([conversation(6, 100), Rendered([7, 8], [0, 0]), Rendered([9, 5], [1, 0])], WINDOW, PAD)
    assert packed.kept == 1 and packed.dropped == {"too_long": 0, "nothing_to_learn": 2}


def test_the_first_id_of_a_conversation_is_never_a_target() -> None:
    packed = pack([Rendered([10, 11, 12], [1, 1, 1]), Rendered([20, 21], [1, 1])], WINDOW, PAD)
    assert packed.mask[0].tolist() == [0, 1, 1, 0, 1] + [0] * 11


@pytest.mark.parametrize("preset", ["qwen3", "gpt2"])
def test_a_packed_conversation_is_predicted_as_if_alone(preset: str) -> None:
    conversations = [conversation(size, first) for size, first in ((7, 10), (5, 30), (3, 50), (9, 60), (6, 90))]
    packed = pack(conversations, WINDOW, PAD)
    assert len(packed.ids) == 2
    net = network.build(CONFIG.model_copy(update={"preset": preset}), 128, 0, PAD, seed=1).eval()
    with torch.no_grad():
        together = net(input_ids=packed.ids, position_ids=packed.positions, use_cache=False).logits
        for one in conversations:
            row, start = (packed.ids == one.ids[0]).nonzero()[0].tolist()
            alone = net(input_ids=torch.tensor([one.ids]), use_cache=False).logits[0]
            torch.testing.assert_close(together[row, start : start + len(one.ids)], alone, rtol=1e-4, atol=1e-5)
