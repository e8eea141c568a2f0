"""Sections of the model: network, pretraining, fine-tuning, reinforcement."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, Strict, model_validator

from pipeline.recipe.base import (
    CheckpointEvery,
    Count,
    EvaluateEvery,
    Fraction,
    KeepCheckpoints,
    NewTokens,
    NotNegative,
    Positive,
    PositiveInt,
    Precision,
    Section,
)


class Model(Section):
    """The network. `python -m training.depth` fills it, and more, from one number."""

    preset: Literal["qwen3", "llama", "gpt2", "given"] = Field(description="'given': that of `pretrain.weights`.")
    layers: PositiveInt = Field(description="Blocks of attention and MLP.")
    width: PositiveInt = Field(description="Numbers that stand for a token between the blocks.")
    heads: PositiveInt = Field(description="Heads of attention for queries.")
    kv_heads: PositiveInt = Field(description="Heads for keys and values, each for as many of the queries'.")
    head_dim: PositiveInt = Field(description="Numbers of a head.")
    mlp_width: PositiveInt = Field(description="Numbers within an MLP.")
    window: PositiveInt = Field(description="Positions the model is made for, tokens.")
    tied: bool = Field(description="One matrix for embedding and output.")

    @model_validator(mode="after")
    def _shapes_fit(self) -> Model:
        if self.heads % self.kv_heads:
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        if self.preset == "gpt2" and (self.kv_heads != self.heads or self.head_dim * self.heads != self.width):
            raise ValueError("gpt2 needs kv_heads = heads and head_dim * heads = width")
        return self


class Optimizer(Section):
    """AdamW, or Muon for matrices with AdamW for the rest; a rate that rises, holds and falls.

    GPT-3's schedule is `fall: cosine`, `floor: 0.1` and a `decay` of all that `warmup` leaves.
    """

    kind: Literal["adamw", "muon"] = Field(description="Of the layers' matrices; all else is AdamW's.")
    lr: Positive = Field(description="Peak learning rate of AdamW (with Muon: of embeddings, norms and biases).")
    muon_lr: Positive = Field(description="Peak learning rate of Muon. Only for 'muon'.")
    betas: Annotated[tuple[Fraction, Fraction], Strict(False)] = Field(
        description="How slowly AdamW forgets: mean of the gradient, mean of its square."
    )
    weight_decay: NotNegative = Field(
        description="Share of a weight that a step takes off, times the rate; not of norms and biases."
    )
    warmup: Fraction = Field(description="Share of the steps with rising rate.")
    decay: Fraction = Field(description="Share of the steps with falling rate, at the end.")
    fall: Literal["linear", "cosine"] = Field(description="Shape of the falling rate.")
    floor: Fraction = Field(description="Share of the peak rate to which it falls.")
    clip: Positive = Field(description="Largest norm of the gradient.")
    z_loss: NotNegative = Field(
        description="Weight of logsumexp^2 in the gradient (PaLM: 0.0001), against logits that drift; 0 for none. Not "
        "in the loss that is reported, and not for rl."
    )

    @model_validator(mode="after")
    def _shares_fit(self) -> Optimizer:
        if self.warmup + self.decay > 1:
            raise ValueError(f"warmup ({self.warmup}) + decay ({self.decay}) exceed 1")
        return self


class Pretrain(Section):
    """Next-token prediction on the shards."""

    weights: str | None = Field(
        description="Folder in the layout of transformers to begin with: a dense decoder of text in safetensors, "
        "with a tokenizer.json of byte-level BPE that is the corpus' (tokenizer.source). `model` must be what its "
        "config.json says; its dropout is off. Only for preset 'given'. null: a new model."
    )
    continue_from: str | None = Field(
        description="Folder, below the root, of a checkpoint of an earlier pretraining on the same shards: weights, "
        "optimizer and place in the data are its, the schedule is this recipe's. null: anew."
    )
    window: PositiveInt = Field(description="Tokens a sample.")
    within_documents: bool = Field(
        description="A token sees its own document only, and positions restart there; else a window is one text, which "
        "FlashAttention's kernel can take."
    )
    batch: PositiveInt = Field(description="Samples an optimizer step, over all ranks and accumulation.")
    steps: PositiveInt = Field(description="Optimizer steps.")
    precision: Precision
    optimizer: Optimizer
    evaluate_every: PositiveInt = Field(description="Steps between two looks at validation loss and samples.")
    checkpoint_every: CheckpointEvery
    keep_checkpoints: PositiveInt = Field(
        description="The newest that stay, each with an export; beside them stays the last before the rate falls, from "
        "which `continue_from` goes on to a longer horizon."
    )
    prompts: list[str] = Field(description="Prompts whose continuations are logged while the model learns.")
    mix: dict[str, Fraction] = Field(
        description="Folders, below the root, of other shard artifacts of the same tokenizer, each with its share of "
        "the samples; the rest is this run's."
    )

    @model_validator(mode="after")
    def _shares_fit(self) -> Pretrain:
        if sum(self.mix.values()) >= 1:
            raise ValueError(f"the shares of mix leave nothing for this run's shards ({sum(self.mix.values()):g})")
        return self


class Sft(Section):
    """Conversations; loss on the assistant's tokens only."""

    conversations: list[str] = Field(
        min_length=1,
        description="JSON-lines files of {'messages': …}, or 'builtin:identity', 'builtin:smalltalk', "
        "'builtin:arithmetic'.",
    )
    arithmetic: Count = Field(description="Conversations that 'builtin:arithmetic' makes.")
    window: PositiveInt = Field(description="Tokens a row, into which conversations are packed whole.")
    batch: PositiveInt = Field(description="Packed rows an optimizer step, over all ranks and accumulation.")
    epochs: Positive = Field(description="How often each conversation is seen.")
    precision: Precision
    optimizer: Optimizer
    evaluate_every: EvaluateEvery
    checkpoint_every: CheckpointEvery
    keep_checkpoints: KeepCheckpoints


class Rl(Section):
    """GRPO on verifiable tasks: sample many answers, score them, learn from the difference."""

    task: Literal["arithmetic"] = Field(description="Whose answers can be checked: sums and differences.")
    prompts: PositiveInt = Field(description="Questions an optimizer step, over all ranks.")
    samples: Annotated[int, Field(ge=2)] = Field(description="Answers a question.")
    steps: PositiveInt = Field(description="Optimizer steps.")
    max_new_tokens: NewTokens
    temperature: Positive = Field(description="At which answers are sampled: 1 as the model says, less is bolder.")
    precision: Precision
    optimizer: Optimizer
    evaluate_every: EvaluateEvery
    checkpoint_every: CheckpointEvery
    keep_checkpoints: KeepCheckpoints
