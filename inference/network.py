"""The network: a `transformers` causal LM from the recipe's `model` section, or from a folder that holds one.

The presets differ in the block only: qwen3 (QK-norm, GQA, RMSNorm, SwiGLU, RoPE), llama (the same without QK-norm),
gpt2 (LayerNorm, GELU, learned positions).

Attention is torch's `scaled_dot_product_attention`. A plain window asks for `is_causal` without a mask, which
FlashAttention's kernel takes where torch has one: in bf16 on a GPU. Where positions restart at documents,
`transformers` makes a boolean mask [rows, 1, n, n] of them, once a micro-batch; Flash takes no mask, so the
memory-efficient kernel computes those. A micro-batch in which no document begins has no mask either.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from tokenizers import Tokenizer as HfTokenizer
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen3Config

from pipeline.errors import ArtifactError, RecipeError
from pipeline.recipe import Model
from tokenizer.bpe import Tokenizer
from tokenizer.chat import END_OF_TEXT, PAD, SPECIAL_TOKENS

# Words, numbers, spaces, marks and letters beyond ASCII: texts whose ids agree come from one tokenizer.
_PROBE = "The quick brown fox's 1234567 jumps\n\n    over naïve façades; x_1 += 3.14 * f(y) – 東京で会いましょう 🙂"

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


def first(model: Model, weights: str | None, tokenizer: Tokenizer, seed: int) -> nn.Module:
    """The model that pretraining begins with: a new one, or that of the folder `weights`.

    Its table of ids comes out as long as the tokenizer's vocabulary: rows that only pad it (Qwen's 151,936 for 151,669
    ids) are cut, so that no sample is an id without a meaning, and rows of our special tokens are added. Raises
    `RecipeError` where the `model` section says otherwise than config.json, `ArtifactError` for a checkpoint that we
    cannot go on from (docs/decisions.md says which).
    """
    ends = tokenizer.special(END_OF_TEXT), tokenizer.special(PAD)
    if weights is None:
        return build(model, tokenizer.vocabulary, *ends, seed)
    folder = Path(weights)
    network = load(folder)
    config: Any = network.config
    _check_kind(folder, config)
    heads = config.num_attention_heads
    found = {
        "layers": config.num_hidden_layers,
        "width": config.hidden_size,
        "heads": heads,
        "kv_heads": getattr(config, "num_key_value_heads", None) or heads,
        "head_dim": getattr(config, "head_dim", None) or config.hidden_size // heads,
        "mlp_width": getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None),
        "window": config.max_position_embeddings,
        "tied": config.tie_word_embeddings,
    }
    found["mlp_width"] = found["mlp_width"] or 4 * config.hidden_size  # GPT-2's, where it does not say
    wrong = {key: value for key, value in found.items() if getattr(model, key) != value}
    if wrong:
        raise RecipeError(
            f"the model in {folder} is another than the recipe's: "
            + ", ".join(f"model.{key} is {value}" for key, value in wrong.items()),
            "write these values into the recipe",
        )
    _check_vocabulary(folder, config.vocab_size, tokenizer)
    if tokenizer.vocabulary != config.vocab_size:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network.resize_token_embeddings(tokenizer.vocabulary)  # type: ignore[operator]
    config.bos_token_id, config.eos_token_id, config.pad_token_id = ends[0], ends[0], ends[1]
    return network


def assets(weights: str | None) -> dict[str, str]:
    """Sha256 of the files of a folder to begin with, for the fingerprint."""
    if weights is None:
        return {}
    files = sorted(path for path in Path(weights).glob("*") if path.suffix in (".json", ".safetensors"))
    return {f"weights/{path.name}": _sha256(path) for path in files}


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _check_kind(folder: Path, config: Any) -> None:
    """Raise `ArtifactError` for what the `model` section has no words for."""
    remedy = "name a dense decoder of text, as GPT-2, Llama, Mistral or Qwen3"
    needed = ("num_hidden_layers", "num_attention_heads", "hidden_size", "max_position_embeddings")
    if missing := [name for name in needed if not isinstance(getattr(config, name, None), int)]:
        raise ArtifactError(f"config.json in {folder} ({config.model_type}) has no {', '.join(missing)}", remedy)
    if (getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None) or 0) > 1:
        raise ArtifactError(
            f"the model in {folder} is a mixture of experts, and our loss lacks the term that balances them", remedy
        )


def _check_vocabulary(folder: Path, size: int, tokenizer: Tokenizer) -> None:
    """Raise `ArtifactError` where the corpus was not written with the ids that the checkpoint knows."""
    remedy = "use the checkpoint's own tokenizer for the corpus (recipe: tokenizer.source)"
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ArtifactError(f"{folder} holds no tokenizer.json, so nobody knows what its ids mean", remedy)
    theirs = HfTokenizer.from_file(str(path))
    for text in (_PROBE, _PROBE.upper()):
        if theirs.encode(text, add_special_tokens=False).ids != tokenizer.encode(text):
            raise ArtifactError(f"the tokenizer in {folder} gives other ids than the corpus' tokenizer", remedy)
    if tokenizer.vocabulary - len(SPECIAL_TOKENS) > size:
        raise ArtifactError(f"the model in {folder} knows {size} ids, the corpus has more", remedy)


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
    """The model that `folder` holds in the layout of `transformers`, in fp32 on the CPU. Nothing is downloaded.

    Dropout that its config.json asks for is off: what is dropped would depend on how a launch cuts the rows.
    """
    if not (folder / "config.json").is_file():
        raise ArtifactError(f"{folder} holds no config.json", "name a folder that a training stage published")
    local = {"local_files_only": True, "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(folder, **local)
        for name, value in config.to_dict().items():
            if "drop" in name and isinstance(value, float):
                setattr(config, name, 0.0)
        network = AutoModelForCausalLM.from_pretrained(
            folder, config=config, dtype=torch.float32, attn_implementation="sdpa", use_safetensors=True, **local
        )
    except (OSError, ValueError, ImportError) as error:
        raise ArtifactError(f"{folder} holds no model that transformers loads: {error}", "make it again") from error
    return cast(nn.Module, network)


def flops_a_token(network: nn.Module, window: int) -> float:
    """Operations that learning a token needs: 6 N + 12 L H Q T (PaLM, Chowdhery et al. 2022, appendix B).

    N counts what is multiplied: not the tables of tokens and positions, but a tied one once, as the output layer. T is
    the window; half of its attention is masked, which the formula leaves in. Recomputation does not count.
    """
    config: Any = network.config
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    tables = {id(module.weight): module.weight for module in network.modules() if isinstance(module, nn.Embedding)}
    tables.pop(id(network.get_output_embeddings().weight), None)  # type: ignore[operator]
    numbers = parameters(network) - sum(table.numel() for table in tables.values())
    return float(6 * numbers + 12 * config.num_hidden_layers * heads * head_dim * window)


# Dense bf16 products a second, from NVIDIA's data sheets (their figures with sparsity halved), by words of the name.
PEAK_FLOPS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L4": 121e12,
}


def peak_flops(device: torch.device) -> float | None:
    """What the device's data sheet promises in bf16; None where we know none, as of CPUs."""
    if device.type != "cuda":
        return None
    words = set(re.split("[ -]", torch.cuda.get_device_name(device)))
    return next((peak for known, peak in PEAK_FLOPS.items() if words >= set(known.split())), None)


def seed_all(seed: int) -> None:
    """Seed torch and numpy."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)


def parameters(network: nn.Module) -> int:
    """How many numbers are learned; a tied matrix counts once."""
    return sum(p.numel() for p in network.parameters())
