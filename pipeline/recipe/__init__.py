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
    GivenTokenizer,
    Input,
    PiiKind,
    Redact,
    Shard,
    Tokenizer,
    TrainedTokenizer,
    UnverifiedDeduplicate,
    VerifiedDeduplicate,
)
from pipeline.recipe.evaluation import Benchmark, Evaluation, Memorization
from pipeline.recipe.filters import C4, Filter, FineWeb, Gopher
from pipeline.recipe.read import load, parse
from pipeline.recipe.recipe import Approval, Recipe
from pipeline.recipe.training import AdamW, Assistant, Learning, Model, Muon, Optimizer, Pretrain, Rl, Sft

__all__ = [
    "C4",
    "CRAWL_ID",
    "AdamW",
    "Approval",
    "Assistant",
    "Benchmark",
    "BlockList",
    "C4Lines",
    "Decontaminate",
    "Deduplicate",
    "Evaluation",
    "Extract",
    "Filter",
    "FineWeb",
    "GivenTokenizer",
    "Gopher",
    "Input",
    "Learning",
    "Memorization",
    "Model",
    "Muon",
    "Optimizer",
    "PiiKind",
    "Pretrain",
    "Recipe",
    "Redact",
    "Rl",
    "Sft",
    "Shard",
    "Tokenizer",
    "TrainedTokenizer",
    "UnverifiedDeduplicate",
    "VerifiedDeduplicate",
    "load",
    "parse",
]  # fmt: skip
