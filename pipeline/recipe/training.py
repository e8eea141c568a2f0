"""Sections of the model: network, pretraining, fine-tuning, reinforcement."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, Strict, model_validator

from pipeline.recipe.base import (
    Fraction,
    NewTokens,
    NotNegative,
    Positive,
    PositiveInt,
    Section,
    Tasks,
    TaskWeights,
    ToolName,
)


class Model(Section):
    """The network. `python -m training.depth` fills it, and more, from one number."""

    preset: Literal["qwen3", "llama", "gpt2", "given"] = Field(description="'given': that of `pretrain.weights`.")
    layers: PositiveInt = Field(description="Transformer blocks.")
    width: PositiveInt = Field(description="Hidden size.")
    heads: PositiveInt = Field(description="Query heads.")
    kv_heads: PositiveInt = Field(description="Key/value heads (grouped-query attention); a divisor of `heads`.")
    head_dim: PositiveInt = Field(description="Head dimension.")
    mlp_width: PositiveInt = Field(description="Hidden size of the MLP.")
    window: PositiveInt = Field(description="Context length, tokens.")
    tied: bool = Field(description="Input and output embeddings share one matrix.")

    @model_validator(mode="after")
    def _shapes_fit(self) -> Model:
        if self.heads % self.kv_heads:
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        if self.preset == "gpt2" and (self.kv_heads != self.heads or self.head_dim * self.heads != self.width):
            raise ValueError("gpt2 needs kv_heads = heads and head_dim * heads = width")
        if self.preset in ("qwen3", "llama") and self.head_dim % 2:
            raise ValueError(f"head_dim ({self.head_dim}) must be even: rotary positions turn its values in pairs")
        return self


class _Optimizer(Section):
    """A rate that rises, holds and falls.

    GPT-3's schedule is `fall: cosine`, `floor: 0.1` and a `decay` of all that `warmup` leaves.
    """

    lr: Positive = Field(description="Peak learning rate of AdamW (with Muon: of embeddings, norms and biases).")
    betas: Annotated[tuple[Fraction, Fraction], Strict(False)] = Field(description="AdamW's beta1 and beta2.")
    weight_decay: NotNegative = Field(
        description="Weight decay, decoupled from the gradient; norms and biases do not decay."
    )
    warmup: Fraction = Field(description="Share of the steps in which the rate rises, at the start.")
    decay: Fraction = Field(description="Share of the steps in which the rate falls, at the end.")
    fall: Literal["linear", "cosine"] = Field(description="Shape of the falling rate.")
    floor: Fraction = Field(description="Share of the peak rate to which it falls.")
    clip: Positive = Field(description="Gradients are clipped to this norm.")
    z_loss: NotNegative = Field(
        description="Weight of logsumexp^2 in the gradient (PaLM: 0.0001), against logits that drift; 0 for none. Not "
        "in the loss that is reported, and not for rl."
    )

    @model_validator(mode="after")
    def _shares_fit(self) -> Self:
        if self.warmup + self.decay > 1:
            raise ValueError(f"warmup ({self.warmup}) + decay ({self.decay}) exceed 1")
        return self


_Kind = Field(description="Optimizer of the matrices between hidden layers; all else is AdamW's.")


class AdamW(_Optimizer):
    """AdamW for all parameters (Loshchilov & Hutter 2019)."""

    kind: Literal["adamw"] = _Kind


class Muon(_Optimizer):
    """Muon for the matrices between hidden layers (Jordan 2024), AdamW for the rest."""

    kind: Literal["muon"] = _Kind
    muon_lr: Positive = Field(description="Peak learning rate of Muon.")


Optimizer = Annotated[AdamW | Muon, Field(discriminator="kind")]


class Learning(Section):
    """What every stage that trains a model has."""

    precision: Literal["fp32", "bf16"] = Field(
        description="dtype of matrix products (autocast); weights, gradients and optimizer state are fp32 either way."
    )
    optimizer: Optimizer
    evaluate_every: PositiveInt = Field(description="Steps between two measurements on the held-out split.")
    checkpoint_every: PositiveInt = Field(description="Steps between two checkpoints, from which a run resumes.")
    keep_checkpoints: PositiveInt = Field(
        description="Newest checkpoints that are kept, each with an export; pretraining keeps the last before the rate "
        "falls too, from which `continue_from` goes on to a longer horizon."
    )


class Pretrain(Learning):
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
    window: PositiveInt = Field(description="Tokens per sample.")
    within_documents: bool = Field(
        description="A token sees its own document only, and positions restart there; else a window is one text, which "
        "FlashAttention's kernel can take."
    )
    batch: PositiveInt = Field(description="Samples per optimizer step, over all ranks and accumulation.")
    steps: PositiveInt = Field(description="Optimizer steps.")
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


class Assistant(Section):
    """What the fine-tuned and the reinforced model have beside their weights."""

    tools: list[ToolName] = Field(description="Tools (inference/tools/) that the model may call while it writes.")


class Sft(Learning):
    """Conversations; loss on the assistant's tokens only."""

    conversations: list[str] = Field(
        description="JSON-lines files of {'messages': …}, or 'builtin:identity', 'builtin:smalltalk'.",
    )
    tasks: Tasks = Field(
        examples=[{"arithmetic": 8000}],
        description="Tasks (evaluation/tasks/), each with the number of conversations to make of it.",
    )
    window: PositiveInt = Field(description="Tokens per row, into which conversations are packed whole.")
    batch: PositiveInt = Field(description="Packed rows per optimizer step, over all ranks and accumulation.")
    epochs: Positive = Field(description="Passes over the conversations.")


class Rl(Learning):
    """GRPO on verifiable tasks: sample many answers, score them, learn from the difference."""

    tasks: TaskWeights = Field(
        min_length=1,
        examples=[{"arithmetic": 1}],
        description="Tasks (evaluation/tasks/) whose verifier gives the reward, each with its weight among the "
        "questions.",
    )
    prompts: PositiveInt = Field(description="Questions per optimizer step, over all ranks.")
    samples: Annotated[int, Field(ge=2)] = Field(description="Samples per question.")
    steps: PositiveInt = Field(description="Optimizer steps.")
    max_new_tokens: NewTokens
    temperature: Positive = Field(description="Sampling temperature; 1 is the model's own distribution.")
