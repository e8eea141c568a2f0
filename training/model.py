"""The network: a `transformers` causal LM from the recipe's `model` section, or from a folder that holds one.

The presets differ in the block only: qwen3 (QK-norm, GQA, RMSNorm, SwiGLU, RoPE), llama (the same without QK-norm),
gpt2 (LayerNorm, GELU, learned positions).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen3Config

from pipeline.errors import ArtifactError
from pipeline.recipe import Model

ROPE_THETA = 10_000.0  # Su et al. 2021; enough for windows of some thousand tokens


def configuration(model: Model, vocabulary: int, end_of_text: int, pad: int) -> Any:
    """The `transformers` configuration of the recipe's model over `vocabulary` ids."""
    ids = {"bos_token_id": end_of_text, "eos_token_id": end_of_text, "pad_token_id": pad}
    if model.preset == "gpt2":
        return GPT2Config(
            vocab_size=vocabulary,
            n_positions=model.window,
            n_embd=model.width,
            n_layer=model.layers,
            n_head=model.heads,
            n_inner=model.mlp_width,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            tie_word_embeddings=model.tied,
            **ids,
        )
    make = Qwen3Config if model.preset == "qwen3" else LlamaConfig
    return make(
        vocab_size=vocabulary,
        hidden_size=model.width,
        intermediate_size=model.mlp_width,
        num_hidden_layers=model.layers,
        num_attention_heads=model.heads,
        num_key_value_heads=model.kv_heads,
        head_dim=model.head_dim,
        max_position_embeddings=model.window,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        tie_word_embeddings=model.tied,
        attention_dropout=0.0,
        **ids,
    )


def build(model: Model, vocabulary: int, end_of_text: int, pad: int, seed: int) -> nn.Module:
    """A new model in fp32 on the CPU; the same seed gives the same weights on every machine and rank."""
    before = torch.get_rng_state()
    torch.manual_seed(seed)
    network = AutoModelForCausalLM.from_config(
        configuration(model, vocabulary, end_of_text, pad), dtype=torch.float32, attn_implementation="sdpa"
    )
    torch.set_rng_state(before)
    return cast(nn.Module, network)


def load(folder: Path) -> nn.Module:
    """The model that `folder` holds in the layout of `transformers`, in fp32 on the CPU. Nothing is downloaded."""
    if not (folder / "config.json").is_file():
        raise ArtifactError(f"{folder} holds no config.json", "name a folder that a training stage published")
    try:
        network = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="sdpa", local_files_only=True, use_safetensors=True
        )
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{folder} holds no model that transformers loads: {error}", "make it again") from error
    return cast(nn.Module, network)


def parameters(network: nn.Module) -> int:
    """How many numbers are learned; a tied matrix counts once."""
    return sum(p.numel() for p in network.parameters())
