"""Sections of what a model is asked."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pipeline.recipe.base import (
    Count,
    NewTokens,
    PositiveInt,
    Section,
    Tasks,
)


class Benchmark(Section):
    """Questions with known answers, scored by log-likelihood; or text, for bits per byte."""

    name: str = Field(pattern=r"^[a-z0-9_]+$", description="Names its numbers.")
    kind: Literal["hellaswag", "arc", "mmlu", "lambada", "text"] = Field(description="Format of the file.")
    file: str = Field(description="JSON lines.")
    shots: Count = Field(description="Examples before each question: the first of `examples`.")
    examples: str | None = Field(description="JSON lines of the same format; null without shots.")
    most: PositiveInt | None = Field(description="Only the first so many questions; null for all.")

    @model_validator(mode="after")
    def _examples_fit(self) -> Benchmark:
        if self.shots and (self.examples is None or self.kind == "text"):
            raise ValueError("shots need examples, and text takes none")
        return self


class Evaluation(Section):
    """What is measured of a model between the stages."""

    tasks: Tasks = Field(
        examples=[{"arithmetic": 200}],
        description="Tasks (evaluation/tasks/), each with the number of its held-out questions to ask.",
    )
    samples: PositiveInt = Field(description="Samples per question at temperature 1.")
    max_new_tokens: NewTokens
    prompts: list[str] = Field(description="Prompts for the samples shown side by side.")
    chats: list[str] = Field(description="User messages for the conversations shown side by side.")
    benchmarks: list[Benchmark] = Field(
        description="Evaluation sets on local files, each with name, kind, file, shots, examples and most: see "
        "docs/evaluate.md."
    )
    demonstrations: list[str] = Field(
        description="Prompts that show a base model at work: JSON-lines files of {'name', 'prompt', 'stop'}, or "
        "'builtin:translation', 'builtin:assistant'."
    )

    @model_validator(mode="after")
    def _names_fit(self) -> Evaluation:
        names = [one.name for one in self.benchmarks]
        if len(set(names)) < len(names):
            raise ValueError(f"two benchmarks of one name among {names}")
        return self


class Memorization(Section):
    """How much of its training text a model says word for word."""

    documents: PositiveInt = Field(description="Documents whose beginning is the prompt, of each split.")
    prompt_tokens: PositiveInt = Field(description="Tokens of a document that the model is given.")
    new_tokens: PositiveInt = Field(description="New tokens per continuation or free sample, at most.")
    free_samples: PositiveInt = Field(description="Texts that the model writes without a prompt.")
    recited: PositiveInt = Field(description="A run of so many tokens counts as recited.")
    sets: list[str] = Field(description="Evaluation sets (JSON lines or text) to look for in the shards.")
