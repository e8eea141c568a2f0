"""The fused loss beside the plain one: the same value, the same gradients, and never all logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from inference import network
from pipeline.errors import StageError
from tests.inference.test_network import shape
from training.engine import cross_entropy
from training.engine.cross_entropy import FusedHead
from training.engine.losses import TokenLoss, token_loss


def losses(preset: str, tied: bool, vocabulary: int, rows: int, seed: int, z_loss: float, chunk: int) -> Any:
    """Loss and gradients, plain and fused with `chunk` tokens per chunk."""
    ids = torch.randint(vocabulary, (rows, 13), generator=torch.Generator().manual_seed(seed))
    mask = torch.randint(2, (rows, 13), generator=torch.Generator().manual_seed(seed + 1))
    for fused in (False, True):
        net = network.build(shape(preset, tied), vocabulary, 0, 1, seed)
        if fused:
            FusedHead.install(net)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cross_entropy, "CHUNK_BYTES", {"cpu": chunk * 4 * vocabulary})
            loss = TokenLoss(z_loss)(net, {"ids": ids, "mask": mask})
        (loss * 0.37).backward()  # type: ignore[no-untyped-call]
        yield float(loss.detach()), {name: p.grad for name, p in net.named_parameters()}


@given(
    st.sampled_from(["qwen3", "gpt2"]), st.booleans(), st.integers(2, 300), st.integers(1, 5), st.integers(0, 99),
    st.sampled_from([0.0, 1e-3, 0.5]), st.integers(1, 80),
)  # fmt: skip
@settings(max_examples=12, deadline=None)
def test_value_and_gradients_are_those_of_the_plain_loss(
    preset: str, tied: bool, vocabulary: int, rows: int, seed: int, z_loss: float, chunk: int
) -> None:
    (plain, expected), (fused, gradients) = losses(preset, tied, vocabulary, rows, seed, z_loss, chunk)
    assert fused == pytest.approx(plain, rel=1e-6, abs=1e-6)
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=2e-5 * float(gradient.abs().max() + 1e-3))


def test_z_loss_pulls_the_sum_of_the_logits_to_one() -> None:
    """By its definition: d/dw of the loss plus z x logsumexp^2, by autograd on whole logits."""
    net = network.build(shape("qwen3"), 50, 0, 1, 1)
    ids = torch.arange(26).view(2, 13)
    batch = {"ids": ids, "mask": torch.ones_like(ids)}
    logits = net(input_ids=ids[:, :-1]).logits
    nats = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
    (nats + 0.3 * logits.logsumexp(-1).square().sum()).backward()
    expected = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    net.zero_grad()
    loss = TokenLoss(0.3)(net, batch)
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == pytest.approx(float(nats.detach()), rel=1e-6)
    for ours, theirs in zip((p.grad for p in net.parameters()), expected, strict=True):
        assert ours is not None
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


class LargestLogits(TorchDispatchMode):
    """Records the size of the largest result of any operation whose last dimension is the vocabulary."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary, self.largest = vocabulary, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.shape[-1:] == (self.vocabulary,):
            self.largest = max(self.largest, out.numel())
        return out


@pytest.mark.parametrize(("fused", "largest"), [(False, 48 * 997), (True, 32 * 997)])  # 32: the output layer's matrix
def test_no_more_logits_exist_than_a_chunk_has(fused: bool, largest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "CHUNK_BYTES", {"cpu": 5 * 4 * 997})
    net = network.build(shape("qwen3"), 997, 0, 1, 1)
    if fused:
        FusedHead.install(net)
    ids = torch.arange(52).view(4, 13)
    with LargestLogits(997) as recorded:
        token_loss(net, {"ids": ids, "mask": torch.ones_like(ids)}).backward()  # type: ignore[no-untyped-call]
    assert recorded.largest == largest


def test_bf16_is_near() -> None:
    ids = torch.arange(52).view(4, 13)
    results = []
    for fused in (False, True):
        net = network.build(shape("qwen3"), 64, 0, 1, 1)
        if fused:
            FusedHead.install(net)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = token_loss(net, {"ids": ids, "mask": torch.ones_like(ids)})
        loss.backward()  # type: ignore[no-untyped-call]
        results.append((float(loss.detach()), [p.grad for p in net.parameters()]))
    (plain, expected), (fused_loss, gradients) = results
    assert fused_loss == pytest.approx(plain, rel=1e-3)
    for ours, theirs in zip(gradients, expected, strict=True):
        assert ours is not None and theirs is not None and ours.dtype == torch.float32
        assert float((ours - theirs).norm() / theirs.norm()) < 0.03


def test_without_targets_it_is_the_layer_it_replaced() -> None:
    plain, fused = (network.build(shape("qwen3"), 64, 0, 1, 1) for _ in range(2))
    FusedHead.install(fused)
    ids = torch.arange(12)[None]
    assert torch.equal(plain(input_ids=ids).logits, fused(input_ids=ids).logits)
    assert fused.state_dict().keys() == plain.state_dict().keys()
    assert network.parameters(fused) == network.parameters(plain)


def test_an_output_layer_of_another_kind_is_refused() -> None:
    net = network.build(shape("qwen3"), 64, 0, 1, 1)
    net.config.final_logit_softcapping = 30.0  # type: ignore[union-attr]
    with pytest.raises(StageError, match="more than one matrix"):
        FusedHead.install(net)
