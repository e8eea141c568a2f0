"""The network: a `transformers` causal LM built from the recipe's `model` section, or loaded from a checkpoint folder.

The presets differ in the transformer block only: qwen3 (QK-norm, GQA, RMSNorm, SwiGLU, RoPE), llama (the same without
QK-norm), gpt2 (LayerNorm, GELU, learned positions).

Attention is torch's `scaled_dot_product_attention`. A plain window is computed with `is_causal` and no mask, which
FlashAttention's kernel supports: in bf16 on a GPU. Where positions restart at documents, `transformers` derives a
boolean mask [rows, 1, n, n] from them, once per micro-batch; Flash supports no mask, so torch falls back on the
memory-efficient kernel. A micro-batch in which no document begins has no mask either.
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
from transformers.utils.logging import disable_progress_bar

from pipeline.errors import ArtifactError, RecipeError
from pipeline.recipe import Model
from tokenizer.bpe import Tokenizer
from tokenizer.chat import END_OF_TEXT, PAD, SPECIAL_TOKENS

# Words, numbers, spaces, punctuation and letters beyond ASCII: two tokenizers that encode it alike are taken to be the
# same one. Comparing their files would not do, since exports write the same tokenizer in different ways.
_PROBE = "The quick brown fox's 1234567 jumps\n\n    over naïve façades; x_1 += 3.14 * f(y) – 東京で会いましょう 🙂"

ROPE_THETA = 10_000.0  # Su et al. 2021; enough for windows of some thousand tokens


def configuration(model: Model, vocabulary: int, end_of_text: int, pad: int) -> Any:
    """The `transformers` configuration of the recipe's model with a vocabulary of that size."""
    # Special ids are those of pretraining, where a document both begins and ends with <|endoftext|>.
    ids = {"bos_token_id": end_of_text, "eos_token_id": end_of_text, "pad_token_id": pad}
    if model.preset == "gpt2":
        return GPT2Config(
            vocab_size=vocabulary,
            n_positions=model.window,
            n_embd=model.width,
            n_layer=model.layers,
            n_head=model.heads,
            n_inner=model.mlp_width,
            # GPT-2's default is 0.1. Dropout masks would depend on how a launch splits the batch into micro-batches.
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            tie_word_embeddings=model.tied,
            **ids,
        )
    config_class = Qwen3Config if model.preset == "qwen3" else LlamaConfig
    return config_class(
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


def initial_model(model: Model, weights: str | None, tokenizer: Tokenizer, seed: int) -> nn.Module:
    """The model that pretraining starts from: a new one, or the checkpoint in the folder `weights`.

    Its embedding ends up with one row per id of the tokenizer: rows that only pad it (Qwen's 151,936 for 151,669 ids)
    are cut, so that no id without a meaning can be sampled, and rows for our special tokens are added. Raises
    `RecipeError` where the `model` section contradicts config.json, `ArtifactError` for a checkpoint that cannot be
    trained further (docs/decisions.md says which).
    """
    end_of_text, pad = tokenizer.special(END_OF_TEXT), tokenizer.special(PAD)
    if weights is None:
        return build(model, tokenizer.vocabulary, end_of_text, pad, seed)
    # 1. Load the checkpoint, and refuse architectures that the recipe cannot describe.
    folder = Path(weights)
    network = load(folder)
    config: Any = network.config
    _check_architecture(folder, config)
    # 2. The recipe must describe what is built, so its `model` section has to agree with config.json.
    actual = _dimensions(config)
    wrong = {key: value for key, value in actual.items() if getattr(model, key) != value}
    if wrong:
        raise RecipeError(
            f"the model in {folder} differs from the recipe's: "
            + ", ".join(f"model.{key} is {value}" for key, value in wrong.items()),
            "write these values into the recipe",
        )
    # 3. The corpus must be encoded with the checkpoint's ids; then the embedding is made as long as the vocabulary.
    _check_tokenizer(folder, config.vocab_size, tokenizer)
    if tokenizer.vocabulary != config.vocab_size:
        # New rows are drawn at random: from the recipe's seed, and without advancing the generator of the run.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network.resize_token_embeddings(tokenizer.vocabulary)  # type: ignore[operator]
    config.bos_token_id, config.eos_token_id, config.pad_token_id = end_of_text, end_of_text, pad
    return network


def _dimensions(config: Any) -> dict[str, Any]:
    """What a `transformers` configuration says of each key of the `model` section that has a counterpart in it."""
    heads = config.num_attention_heads
    mlp_width = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None)
    return {
        "layers": config.num_hidden_layers,
        "width": config.hidden_size,
        "heads": heads,
        "kv_heads": getattr(config, "num_key_value_heads", None) or heads,
        "head_dim": getattr(config, "head_dim", None) or config.hidden_size // heads,
        "mlp_width": mlp_width or 4 * config.hidden_size,  # GPT-2's, whose `n_inner` may be null
        "window": config.max_position_embeddings,
        "tied": config.tie_word_embeddings,
    }


def assets(weights: str | None) -> dict[str, str]:
    """Sha256 by name of the configuration and weights in a checkpoint folder, for the fingerprint."""
    if weights is None:
        return {}
    files = sorted(path for path in Path(weights).glob("*") if path.suffix in (".json", ".safetensors"))
    return {f"weights/{path.name}": _sha256(path) for path in files}


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _check_architecture(folder: Path, config: Any) -> None:
    """Raise `ArtifactError` for an architecture that the `model` section cannot describe."""
    remedy = "name a dense decoder of text, such as GPT-2, Llama, Mistral or Qwen3"
    required = ("num_hidden_layers", "num_attention_heads", "hidden_size", "max_position_embeddings")
    if missing := [name for name in required if not isinstance(getattr(config, name, None), int)]:
        raise ArtifactError(f"config.json in {folder} ({config.model_type}) has no {', '.join(missing)}", remedy)
    if (getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None) or 0) > 1:
        raise ArtifactError(
            f"the model in {folder} is a mixture of experts, and our loss lacks the term that balances them", remedy
        )


def _check_tokenizer(folder: Path, size: int, tokenizer: Tokenizer) -> None:
    """Raise `ArtifactError` where the corpus is not encoded with the checkpoint's ids; `size`: its vocabulary."""
    remedy = "use the checkpoint's own tokenizer for the corpus (recipe: tokenizer.source)"
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ArtifactError(f"{folder} holds no tokenizer.json, so the meaning of its ids is unknown", remedy)
    theirs = HfTokenizer.from_file(str(path))
    for text in (_PROBE, _PROBE.upper()):
        if theirs.encode(text, add_special_tokens=False).ids != tokenizer.encode(text):
            raise ArtifactError(f"the tokenizer in {folder} gives other ids than the corpus' tokenizer", remedy)
    # Our special tokens may lie beyond the checkpoint's embedding: their rows are added. Any other id must have one.
    if tokenizer.vocabulary - len(SPECIAL_TOKENS) > size:
        raise ArtifactError(
            f"the model in {folder} has {size} ids, and the corpus' tokenizer has more even without special tokens",
            remedy,
        )


def build(model: Model, vocabulary: int, end_of_text: int, pad: int, seed: int) -> nn.Module:
    """A new model in fp32 on the CPU; the same seed gives the same weights on every machine and rank."""
    # The global generator is left as it was: a run that builds a model goes on with the draws of one that loads it.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = AutoModelForCausalLM.from_config(
            configuration(model, vocabulary, end_of_text, pad), dtype=torch.float32, attn_implementation="sdpa"
        )
    return cast(nn.Module, network)


def load(folder: Path) -> nn.Module:
    """The model that `folder` holds in the layout of `transformers`, in fp32 on the CPU. Nothing is downloaded.

    Dropout that its config.json asks for is switched off: what is dropped would depend on how a launch splits the batch
    into micro-batches. Raises `ArtifactError` for a folder from which `transformers` loads no model.
    """
    if not (folder / "config.json").is_file():
        raise ArtifactError(f"{folder} holds no config.json", "name a folder that a training stage published")
    disable_progress_bar()  # of a load that takes a moment, amid the lines of a log or a conversation
    # A checkpoint is data: no code that lies beside it is run, and no pickled weights are read.
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
        raise ArtifactError(
            f"{folder} holds no model that transformers loads: {error}", "run the stage that published it again"
        ) from error
    return cast(nn.Module, network)


def load_on_device(folder: Path) -> nn.Module:
    """The model of `load`, moved to the GPU if this machine has one."""
    return load(folder).to("cuda" if torch.cuda.is_available() else "cpu")


def flops_per_token(network: nn.Module, window: int) -> float:
    """Training FLOPs per token: 6 N + 12 L H Q T (PaLM, Chowdhery et al. 2022, appendix B).

    N counts the parameters of matrix products: no embeddings of tokens and positions, but a tied one once, as the
    output layer. L layers, H heads of dimension Q. T is the window; half of its attention is masked, which the formula
    counts all the same. Recomputation (activation checkpointing) does not count.
    """
    config: Any = network.config
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    # By identity, since a tied matrix is both an embedding (a lookup) and the output layer (a product).
    embeddings = {id(module.weight): module.weight for module in network.modules() if isinstance(module, nn.Embedding)}
    embeddings.pop(id(network.get_output_embeddings().weight), None)  # type: ignore[operator]
    multiplied = parameters(network) - sum(matrix.numel() for matrix in embeddings.values())
    return float(6 * multiplied + 12 * config.num_hidden_layers * heads * head_dim * window)


# Peak FLOP/s of dense bf16 products, from NVIDIA's data sheets (whose figures with sparsity are twice as high), by
# words of the device's name. The first entry whose words all occur is taken, so variants precede the plain name.
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
    """Peak bf16 FLOP/s by the device's data sheet; None for CPUs and for GPUs that `PEAK_FLOPS` does not list."""
    if device.type != "cuda":
        return None
    # Whole words are compared: "L4" must not match an L40S, nor "H200" a GH200, whose peaks differ.
    words = set(re.split("[ -]", torch.cuda.get_device_name(device)))
    return next((peak for known, peak in PEAK_FLOPS.items() if words >= set(known.split())), None)


def seed_all(seed: int) -> None:
    """Seed the global generators of torch and numpy."""
    torch.manual_seed(seed)
    # numpy accepts 32 bits only, torch 64.
    np.random.seed(seed % 2**32)


def parameters(network: nn.Module) -> int:
    """Number of parameters; a tied matrix counts once."""
    return sum(p.numel() for p in network.parameters())
