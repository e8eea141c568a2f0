"""The recipe: one pydantic model of *what* is built; where, and with how many machines, is not part of it.

A recipe is complete: no field has a default, so no later release can change what an old recipe builds. Every stage has
a section of its own name; its fingerprint covers that section, `seed` and its inputs.
"""

from pipeline.recipe.corpus import (
    CRAWL_ID,
    BlockList,
    C4Lines,
    Decontaminate,
    Deduplicate,
    Extract,
    Input,
    PiiKind,
    Redact,
    Shard,
    Tokenizer,
)
from pipeline.recipe.evaluation import Evaluation, Memorization, Task
from pipeline.recipe.filters import C4, Filter, FineWeb, Gopher
from pipeline.recipe.read import load, parse
from pipeline.recipe.recipe import Approval, Recipe
from pipeline.recipe.training import Model, Optimizer, Pretrain, Rl, Sft

__all__ = [
    "C4", "CRAWL_ID", "Approval", "BlockList", "C4Lines", "Decontaminate", "Deduplicate", "Evaluation", "Extract",
    "Filter", "FineWeb", "Gopher", "Input", "Memorization", "Model", "Optimizer", "PiiKind", "Pretrain", "Recipe",
    "Redact", "Rl", "Sft", "Shard", "Task", "Tokenizer", "load", "parse",
]  # fmt: skip
