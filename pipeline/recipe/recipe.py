"""The whole recipe, and what must fit between its sections."""

from __future__ import annotations

from typing import Any

import yaml
from pydantic import BaseModel, Field, model_validator

from pipeline.recipe.base import (
    Count,
    Fraction,
    Positive,
    Section,
)
from pipeline.recipe.corpus import Decontaminate, Deduplicate, Extract, Input, Redact, Shard, Tokenizer
from pipeline.recipe.evaluation import Evaluation, Memorization
from pipeline.recipe.filters import Filter
from pipeline.recipe.training import Assistant, Model, Pretrain, Rl, Sft


class Approval(Section):
    """Where a run waits for a person before it spends. Nothing of this decides what is built."""

    canary_warcs: Count = Field(
        description="WARC files, spread over the input, that are extracted before all others, to foretell what the "
        "rest holds and costs; 0 for none, and no question before extract."
    )
    core_hours: Positive = Field(
        description="Core hours of extract, as the canary foretells them, that need no asking."
    )
    kept_change: Positive = Field(
        description="Relative change of the share of pages that stay, against the canary of the corpus before, that "
        "needs no asking."
    )
    language_change: Fraction = Field(
        description="Share of the pages with text that may be in other languages than in the corpus before, likewise."
    )
    cost_change: Positive = Field(description="Relative change of the CPU seconds per page of extract, likewise.")
    pretrain_flops: Positive = Field(
        description="Floating-point operations of pretraining, 6 per parameter and token, that need no asking."
    )


class Recipe(Section):
    """All of it."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]{0,62}$", description="Names the recipe and runs by hand.")
    seed: Count = Field(description="Of all that is drawn: hashes, weights, order of the data, samples.")
    input: Input
    extract: Extract
    filter: Filter
    deduplicate: Deduplicate
    redact: Redact
    decontaminate: Decontaminate
    tokenizer: Tokenizer
    shard: Shard
    model: Model
    pretrain: Pretrain
    assistant: Assistant
    sft: Sft
    rl: Rl
    evaluation: Evaluation
    memorization: Memorization
    approval: Approval

    @model_validator(mode="after")
    def _quality_fits(self) -> Recipe:
        if self.filter.min_quality is not None and self.extract.quality_model is None:
            raise ValueError("filter.min_quality needs extract.quality_model")
        return self

    @model_validator(mode="after")
    def _languages_fit(self) -> Recipe:
        for language in self.filter.languages:
            if language not in self.extract.languages:
                raise ValueError(f"filter.languages has {language!r}, which extract.languages has not")
        return self

    @model_validator(mode="after")
    def _weights_fit(self) -> Recipe:
        if (self.model.preset == "given") != (self.pretrain.weights is not None):
            raise ValueError("model.preset 'given' and pretrain.weights go together")
        return self

    @model_validator(mode="after")
    def _windows_fit(self) -> Recipe:
        for stage, window in (("pretrain", self.pretrain.window), ("sft", self.sft.window)):
            if window > self.model.window:
                raise ValueError(f"{stage}.window ({window}) exceeds model.window ({self.model.window})")
        for key, tokens, other in (
            ("rl.max_new_tokens", self.rl.max_new_tokens, "a prompt"),
            ("memorization.prompt_tokens", self.memorization.prompt_tokens, "a new token"),
        ):
            if tokens >= self.model.window:
                raise ValueError(f"{key} ({tokens}) leaves no room for {other} in model.window ({self.model.window})")
        return self

    @model_validator(mode="after")
    def _sft_learns_something(self) -> Recipe:
        if not self.sft.conversations and not self.sft.tasks:
            raise ValueError("sft has neither conversations nor tasks: there is nothing to learn from")
        return self

    def section(self, name: str) -> dict[str, Any]:
        """The section as plain data, for fingerprints; file names in it are not resolved."""
        value: BaseModel = getattr(self, name)
        return value.model_dump(mode="json")

    def to_yaml(self) -> str:
        """The recipe as YAML that `load` reads back to an equal one."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)
