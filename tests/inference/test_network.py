"""Models built from a recipe, and loaded from a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from inference import network
from pipeline.errors import ArtifactError
from pipeline.recipe import Model
from training.data.loader import document_positions
from training.engine.losses import token_loss

SHAPE: dict[str, Any] = {"layers": 2, "width": 32, "heads": 2, "head_dim": 16, "mlp_width": 64, "window": 32}


def shape(preset: str, tied: bool = True, kv_heads: int = 2) -> Model:
    return Model.model_validate(SHAPE | {"preset": preset, "tied": tied, "kv_heads": kv_heads})


@pytest.mark.parametrize("preset", ["qwen3", "llama", "gpt2"])
def test_a_seed_makes_one_model_and_leaves_the_generator_alone(preset: str) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, same, other = (network.build(shape(preset), 64, 0, 1, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_the_number_of_parameters_is_that_of_the_architecture() -> None:
    attention = 32 * 32 + 2 * 32 * 16 + 32 * 32 + 2 * 16  # q, k and v of one head, o, the norms of q and k
    layer = attention + 3 * 32 * 64 + 2 * 32
    assert network.parameters(network.build(shape("qwen3", kv_heads=1), 64, 0, 1, 1)) == 2 * layer + 32 + 64 * 32
    untied = network.build(shape("qwen3", tied=False, kv_heads=1), 64, 0, 1, 1)
    assert network.parameters(untied) == 2 * layer + 32 + 2 * 64 * 32


def test_flops_per_token_are_those_of_palm() -> None:
    """By hand: six per parameter of a product, and attention's two products, once forward and twice backward."""
    tied, untied = (network.build(shape("qwen3", tied), 64, 0, 1, 1) for tied in (True, False))
    attention = 12 * 2 * 2 * 16 * 24
    assert network.flops_per_token(tied, 24) == 6 * network.parameters(tied) + attention
    assert network.flops_per_token(untied, 24) == 6 * (network.parameters(untied) - 64 * 32) + attention
    positions = 32 * 32
    gpt2 = network.build(shape("gpt2"), 64, 0, 1, 1)
    assert network.flops_per_token(gpt2, 24) == 6 * (network.parameters(gpt2) - positions) + attention


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", None),
        ("NVIDIA GH200 480GB", None),
    ],
)
def test_peak_flops_are_those_of_this_very_card(monkeypatch: pytest.MonkeyPatch, name: str, peak: float | None) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert network.peak_flops(torch.device("cuda")) == peak
    assert network.peak_flops(torch.device("cpu")) is None


@pytest.mark.parametrize("preset", ["qwen3", "llama", "gpt2"])
def test_a_new_model_predicts_uniformly_and_is_causal(preset: str) -> None:
    net = network.build(shape(preset), 64, 0, 1, 1).eval()
    ids = torch.arange(16)[None]
    with torch.no_grad():
        logits = net(input_ids=ids).logits
        changed = net(input_ids=torch.cat([ids[:, :8], ids[:, 8:] + 9], 1)).logits
    assert torch.allclose(logits[:, :8], changed[:, :8], atol=1e-6)
    assert not torch.allclose(logits[:, 8:], changed[:, 8:], atol=1e-6)
    cost = torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:])
    assert abs(float(cost) - 4.16) < 0.3  # ln 64


@pytest.mark.parametrize("preset", ["qwen3", "llama", "gpt2"])
def test_documents_in_a_window_do_not_see_each_other(preset: str) -> None:
    """The second document's logits are those it has alone, whatever precedes it in the window."""
    net = network.build(shape(preset), 64, 0, 1, 1).eval()
    ids = torch.tensor([[5, 6, 7, 0, 8, 9, 10, 11], [12, 13, 14, 0, 8, 9, 10, 11]])
    with torch.no_grad():
        logits = net(input_ids=ids, position_ids=document_positions(ids, 0), use_cache=False).logits
        alone = net(input_ids=ids[:1, 4:], use_cache=False).logits
        together = net(input_ids=ids, use_cache=False).logits
    for row in logits:
        torch.testing.assert_close(row[4:], alone[0], rtol=1e-4, atol=1e-6)
    assert not torch.allclose(together[0, 4:], alone[0], atol=1e-4)


@pytest.mark.parametrize("preset", ["qwen3", "llama", "gpt2"])
@pytest.mark.parametrize("within", [False, True])
def test_the_arguments_of_attention_decide_which_kernel_supports_it(preset: str, within: bool) -> None:
    """Flash supports bf16 and `is_causal` without a mask: plain windows have none, those of documents a boolean one."""
    calls: list[dict[str, Any]] = []

    class Record(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
            if function is torch.nn.functional.scaled_dot_product_attention:
                calls.append(options)
            return function(*arguments, **(options or {}))

    net = network.build(shape(preset), 64, 0, 1, 1)
    ids = torch.tensor([[5, 6, 7, 0, 8, 9, 10, 11, 12]])
    batch = {"ids": ids, "mask": torch.ones_like(ids)}
    if within:
        batch["positions"] = document_positions(ids, 0)
    with Record(), torch.autocast("cpu", dtype=torch.bfloat16):
        token_loss(net, batch).backward()
    assert len(calls) == 2
    for options in calls:
        assert options["is_causal"] is not within and options["dropout_p"] == 0.0
        if within:
            assert options["attn_mask"].shape == (1, 1, 8, 8) and options["attn_mask"].dtype == torch.bool
            assert options["attn_mask"][0, 0, 5].tolist() == [False] * 4 + [True, True, False, False]
        else:
            assert options["attn_mask"] is None


def test_load_gives_back_what_was_saved(tmp_path: Path) -> None:
    net = network.build(shape("qwen3"), 64, 0, 1, 1)
    net.save_pretrained(tmp_path)  # type: ignore[operator]
    again = network.load(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))
    assert network.parameters(again) == network.parameters(net)


def test_load_refuses_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="holds no config"):
        network.load(tmp_path)
