"""An export: a folder in the layout of `transformers` (safetensors, tokenizer, chat template, generation settings)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from transformers.utils import logging as transformers_logging

from pipeline.artifact import File, describe
from pipeline.storage import Storage
from tokenizer.bpe import Tokenizer
from tokenizer.chat import END_OF_TEXT, IM_END, PAD


def export(model: nn.Module, tokenizer: Tokenizer, folder: Path) -> None:
    """Write model, tokenizer and generation settings to `folder`, for `AutoModelForCausalLM`, vLLM or llama.cpp.

    Generation ends at `<|im_end|>` (a turn) and `<|endoftext|>` (a document); padding is another token, lest it be
    taken for an end (marin#4760).
    """
    folder.mkdir(parents=True, exist_ok=True)
    transformers_logging.disable_progress_bar()  # one per checkpoint, in the middle of the steps' lines
    stop_ids = [tokenizer.special(IM_END), tokenizer.special(END_OF_TEXT)]
    pad = tokenizer.special(PAD)
    model.config.pad_token_id = pad  # type: ignore[union-attr]
    settings: Any = model.generation_config
    settings.update(eos_token_id=stop_ids, bos_token_id=tokenizer.special(END_OF_TEXT), pad_token_id=pad)
    model.save_pretrained(folder)  # type: ignore[operator]
    tokenizer.write_hf(folder, model.config.max_position_embeddings)  # type: ignore[union-attr, arg-type]


def write_export(storage: Storage, folder: str, work: str, model: nn.Module, tokenizer: Tokenizer) -> list[File]:
    """Export to a folder below the root. It is written in `work`, then moved. Returns its entries for a manifest."""
    with storage.filling(folder, f"{work}/export.tmp") as temporary:
        export(model, tokenizer, temporary)
        names = sorted(path.name for path in temporary.iterdir())
    return [describe(storage, folder, name, rows=1) for name in names]
