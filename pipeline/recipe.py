"""The recipe: one pydantic model that says *what* is built, and nothing of where or with how much.

A recipe is complete: no field has a default, so no release of ours can change what an old recipe builds. Every stage
has a section of its own name; its fingerprint covers that section, `seed`, and what it read.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from pipeline.errors import InputError, RecipeError
from pipeline.storage import Storage, holds_password

CRAWL_ID = r"^CC-[A-Za-z0-9-]+$"
Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveInt = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
# What several stages of training share.
Precision = Annotated[
    Literal["fp32", "bf16"],
    Field(description="Numbers of the products; weights, gradients and their sums are fp32 in both."),
]
EvaluateEvery = Annotated[int, Field(ge=1, description="Steps between two measurements on what was held out.")]
CheckpointEvery = Annotated[int, Field(ge=1, description="Steps between two checkpoints, from which a run goes on.")]
KeepCheckpoints = Annotated[int, Field(ge=1, description="The newest that stay, each with an export.")]
NewTokens = Annotated[int, Field(ge=1, description="Tokens of an answer, at most.")]


class Section(BaseModel):
    """Base of all parts of a recipe: unknown keys are refused, values are never converted silently."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Input(Section):
    """The WARC files. Exactly one of `warcs` and `crawl` is given."""

    warcs: list[str] = Field(
        description="Files, globs, URLs, or lists of them (.txt, .paths, also .gz; a file or a URL), one a line."
    )
    crawl: str | None = Field(
        description="Common Crawl id; its warc.paths.gz is read over HTTPS.",
        examples=["CC-MAIN-2025-05"],
        pattern=CRAWL_ID,
    )
    max_warcs: PositiveInt | None = Field(description="Read the first so many files only.")

    @model_validator(mode="after")
    def _one_source(self) -> Input:
        if bool(self.warcs) == (self.crawl is not None):
            raise ValueError("give either 'warcs' or 'crawl'")
        return self

    @model_validator(mode="after")
    def _no_password(self) -> Input:
        if any(holds_password(location) for location in self.warcs):  # which is not shown: the error is logged
            raise ValueError("a URL of 'warcs' holds a password, and would be written to every manifest")
        return self


class BlockList(Section):
    """Pages of these domains are dropped before anything of them is parsed."""

    source: str = Field(
        examples=["ut1", "recipes/blocklists/demo"],
        description="'ut1' for the full list (UT1, in the datatrove package), or a folder in UT1's layout: "
        "<category>/domains, one domain a line, and <category>/urls, one host/path a line.",
    )
    categories: list[str] = Field(description="Categories (folders) to use; empty for all.")
    words: list[str] = Field(
        description="Whole words of a URL that drop the page, in any case. In this and the following lists, an entry "
        "'file:PATH' stands for the lines of a file, 'datatrove:NAME' for a list in that package."
    )
    soft_words: list[str] = Field(description="Words of which `soft_least` together drop the page.")
    soft_least: PositiveInt = Field(description="How many different soft words drop the page.")
    sub_words: list[str] = Field(description="Runs of letters and digits that drop the page wherever they stand.")
    allow: list[str] = Field(description="Domains that are never blocked, with all below them.")


class C4Lines(Section):
    """Lines that C4 takes out (Raffel et al. 2020). The text stays whole; its and FineWeb's scores read the rest."""

    min_words: Count = Field(description="Fewest words of a line, by its spaces; 0 for none. C4: 3.")
    max_word_chars: PositiveInt = Field(description="Most characters of a word of a line. C4: 1000.")
    require_punctuation: bool = Field(
        description="Only lines that end in . ? ! or a quotation mark, and not in an ellipsis. C4: yes; FineWeb: no."
    )
    remove_citations: bool = Field(description="Take Wikipedia's marks out of lines: [1], [edit], [citation needed].")
    drop_javascript: bool = Field(description="Not the lines with the word 'javascript'.")
    drop_policies: bool = Field(description="Not the lines on terms of use, privacy and cookies.")


class Extract(Section):
    """From WARC records to text with scores."""

    block_list: BlockList
    max_failed_warcs: Fraction = Field(
        description="Share of the files that may fail to be had or read (each is listed); above it the stage fails."
    )
    max_html_bytes: PositiveInt = Field(description="A larger page is dropped unread, bytes.")
    page_seconds: Positive = Field(description="CPU seconds one page may take; then it is dropped.")
    languages: dict[str, list[str]] = Field(
        min_length=1,
        description="The languages wanted, by fastText's code, each with its stop words for Gopher's rule. In scripts "
        "without spaces between words (zh, ja, th, lo, my, km) a character counts as a word: give such a language "
        "limits of its own in `filter.by_language`.",
    )
    language_gate: Fraction = Field(
        description="Before extraction: a page is dropped when its share in the languages is below this, by its cld2 "
        "record and, where it has none or others cover most of the page, by fastText on the stripped text. Loose: it "
        "only drops what cannot pass `filter.languages`.",
    )
    extractor: Literal["precision", "default", "fast", "resiliparse"] = Field(
        description="How the main text is found: three ways of trafilatura, or resiliparse, which costs least."
    )
    c4_lines: C4Lines
    quality_model: str | None = Field(
        description="A model of jobs/train_quality.py, whose score becomes a column; null for none."
    )


class Gopher(Section):
    """Thresholds of the Gopher rules (Rae et al. 2021, table A1), as FineWeb sets them. Fractions of 1."""

    min_words: Count = Field(description="Fewest words, punctuation marks not counted.")
    max_words: PositiveInt = Field(description="Most words.")
    min_mean_word_length: NotNegative = Field(description="Least mean length of the words, characters.")
    max_mean_word_length: Positive = Field(description="Largest mean length of the words, characters.")
    max_symbol_word_ratio: Fraction = Field(description="Most signs '#', or ellipses, a word.")
    max_bullet_lines: Fraction = Field(description="Share of the lines that may begin with a bullet point.")
    max_ellipsis_lines: Fraction = Field(description="Share of the lines that may end with an ellipsis.")
    min_alpha_words: Fraction = Field(description="Least share of the words that hold a letter.")
    min_stop_words: Count = Field(description="How many different stop words of `extract.languages` must occur.")
    max_duplicate_lines: Fraction = Field(description="Share of the lines that may repeat an earlier one.")
    max_duplicate_line_chars: Fraction = Field(description="The same, as a share of the characters.")
    max_duplicate_paragraphs: Fraction = Field(description="Share of the paragraphs that may repeat an earlier one.")
    max_duplicate_paragraph_chars: Fraction = Field(description="The same, as a share of the characters.")
    max_top_ngram_chars: dict[Literal["2", "3", "4"], Fraction] = Field(
        description="For runs of so many words: share of the characters that the most frequent run may cover."
    )
    max_duplicate_ngram_chars: dict[Literal["5", "6", "7", "8", "9", "10"], Fraction] = Field(
        description="For runs of so many words: share of the characters that repeated runs may cover together."
    )


class C4(Section):
    """Rules of C4 (Raffel et al. 2020) that FineWeb keeps, on whole documents, in the lines that `c4_lines` leave."""

    min_sentences: Count = Field(description="Fewest sentences, in the lines that `extract.c4_lines` leave; 0: any.")
    drop_lorem_ipsum: bool = Field(description="Drop documents with the words 'lorem ipsum'.")
    drop_curly_brace: bool = Field(description="Drop documents with a curly brace, which are mostly code.")


class FineWeb(Section):
    """Rules found for FineWeb (Penedo et al. 2024, section 3.6)."""

    min_line_punctuation: Fraction = Field(description="Share of lines that end in a terminal punctuation mark.")
    short_line_chars: PositiveInt = Field(
        description="Up to so many characters a line is short: 10, 20, 30, 40, 50 or 60."
    )
    max_short_lines: Fraction = Field(description="Share of the lines that may be short.")
    max_duplicate_line_chars: Fraction = Field(
        description="Share of the characters that may stand in lines that repeat an earlier one, of those C4 leaves."
    )
    max_newline_word_ratio: Positive = Field(description="Most line breaks a word.")


class Filter(Section):
    """Which extracted documents stay. Decided from score columns alone."""

    languages: dict[str, Fraction] = Field(
        min_length=1,
        description="Languages that stay, of those of extract, each with the least probability that fastText gives it.",
    )
    min_quality: Fraction | None = Field(description="Least score of `extract.quality_model`; null for none.")
    gopher: Gopher
    c4: C4
    fineweb: FineWeb
    by_language: dict[str, dict[Literal["gopher", "c4", "fineweb"], dict[str, Any]]] = Field(
        examples=[{"de": {"gopher": {"max_mean_word_length": 15}}}],
        description="For some of `languages`, those of the limits above that differ, by section and name: "
        '{"de": {"gopher": {"max_mean_word_length": 15}}}.',
    )

    @cached_property
    def for_language(self) -> dict[str, Filter]:
        """The rules for each language of `by_language`: its own limits, and these where it has none."""
        return {language: self._with(language) for language in self.by_language}

    def _with(self, language: str) -> Filter:
        rules = self.model_dump() | {"by_language": {}}
        for section, limits in self.by_language[language].items():
            for name, limit in limits.items():
                common = rules[section].get(name)
                both = isinstance(common, dict) and isinstance(limit, dict)  # limits by the length of a run of words
                rules[section][name] = common | limit if both else limit
        try:
            return Filter.model_validate(rules)
        except ValidationError as error:
            found = [
                InitErrorDetails(
                    type=PydanticCustomError("limit", "{reason}", {"reason": _reason(one)}),
                    loc=("by_language", language, *one["loc"]),
                    input={},
                )
                for one in error.errors()
            ]
            raise ValidationError.from_exception_data("Filter", found) from None

    @model_validator(mode="after")
    def _limits_fit(self) -> Filter:
        for language in self.by_language:
            if language not in self.languages:
                raise ValueError(f"by_language has {language!r}, which languages has not")
            self._with(language)
        return self


class Deduplicate(Section):
    """Exact copies, then MinHash-LSH: (1 - (1 - s^rows)^bands) is the chance to find a pair of Jaccard s."""

    ngram_words: PositiveInt = Field(description="Words of a run; texts are compared by the runs they share.")
    bands: PositiveInt = Field(description="Two texts that agree in all hashes of a band are a pair to look at.")
    rows: PositiveInt = Field(description="Hashes a band.")
    verify: bool = Field(description="Keep a pair only if its estimated Jaccard reaches `min_jaccard`.")
    min_jaccard: Fraction = Field(description="Least share of common runs of words. Only where pairs are verified.")
    max_bucket: PositiveInt = Field(description="Buckets up to this size give all pairs; larger ones a star.")
    against: list[str] = Field(
        description="Folders, below the root, of deduplicate artifacts of earlier corpora: what they hold already is "
        "dropped here, by their signatures alone."
    )


PiiKind = Literal["EMAIL", "IP", "US_SSN", "CREDIT_CARD", "IBAN", "PHONE", "PASSPORT", "STREET_ADDRESS", "PERSON"]


class Redact(Section):
    """Personal data to replace by `<KIND>` placeholders."""

    kinds: list[PiiKind] = Field(min_length=1, description="What is looked for. PERSON needs `person_model`.")
    person_model: str | None = Field(description="Folder of a spaCy pipeline that finds names, for PERSON.")

    @model_validator(mode="after")
    def _names_need_a_model(self) -> Redact:
        if ("PERSON" in self.kinds) != (self.person_model is not None):
            raise ValueError("kind PERSON and person_model go together: give both or neither")
        return self


class Decontaminate(Section):
    """Documents that leave for good after redaction: those with an evaluation set's text, and those taken down."""

    sets: list[str] = Field(description="Files of evaluation sets: JSON lines (every string counts) or text.")
    ngram_words: PositiveInt = Field(description="A document leaves that shares a run of so many words with a set.")
    take_down: list[str] = Field(description="Files that list URLs, hosts or document ids to remove, one a line.")


class Tokenizer(Section):
    """Byte-level BPE, trained on the corpus or given."""

    source: str = Field(
        examples=["train", "gpt2", "cl100k_base"],
        pattern=r"^(train|gpt2|cl100k_base|.*/.*)$",
        description="'train' learns it from the corpus; 'gpt2' and 'cl100k_base' are read from tiktoken's cache "
        "(TIKTOKEN_CACHE_DIR) or a package that carries them; a path with a slash names a folder with a tokenizer.json "
        "of byte-level BPE.",
    )
    vocabulary: Annotated[int, Field(ge=512)] = Field(description="Ids, special tokens included. Only for 'train'.")
    pattern: Literal["llama-bpe", "qwen2"] = Field(
        description="Split pattern: llama-bpe is GPT-4's; qwen2 keeps digits single. Only for 'train'."
    )
    sample_bytes: PositiveInt = Field(description="UTF-8 bytes of text to train on.")


class Shard(Section):
    """Token files, shuffled by hash."""

    shard_tokens: PositiveInt = Field(description="Tokens a shard is meant to hold; their count is a power of two.")
    validation: Fraction = Field(description="Share of the documents held out, by hash of their id.")
    train_tokens: PositiveInt | None = Field(
        description="Exactly so many tokens to train on, the last document cut; null: every document once."
    )
    mix: dict[str, Fraction] = Field(
        description="Folders, below the root, of decontaminate artifacts of other corpora, each with its share of "
        "`train_tokens`; the rest is this run's. A corpus that is too small is repeated, up to four times."
    )

    @model_validator(mode="after")
    def _shares_fit(self) -> Shard:
        if self.mix and self.train_tokens is None:
            raise ValueError("mix needs train_tokens: shares are shares of it")
        if sum(self.mix.values()) > 1:
            raise ValueError(f"the shares of mix exceed 1 ({sum(self.mix.values()):g})")
        return self


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


class Task(Section):
    """Questions with known answers, scored by log-likelihood; or text, for bits a byte."""

    name: str = Field(pattern=r"^[a-z0-9_]+$", description="Names its numbers.")
    kind: Literal["hellaswag", "arc", "mmlu", "lambada", "text"] = Field(description="Format of the file.")
    file: str = Field(description="JSON lines.")
    shots: Count = Field(description="Examples before each question: the first of `examples`.")
    examples: str | None = Field(description="JSON lines of the same format; null without shots.")
    most: PositiveInt | None = Field(description="Only the first so many questions; null for all.")

    @model_validator(mode="after")
    def _examples_fit(self) -> Task:
        if self.shots and (self.examples is None or self.kind == "text"):
            raise ValueError("shots need examples, and text takes none")
        return self


class Evaluation(Section):
    """What is measured of a model between the stages."""

    arithmetic: PositiveInt = Field(description="Questions with operand pairs no training stage has seen.")
    samples: PositiveInt = Field(description="Answers a question at temperature 1.")
    max_new_tokens: NewTokens
    prompts: list[str] = Field(description="Prompts for the samples shown side by side.")
    chats: list[str] = Field(description="User messages for the conversations shown side by side.")
    tasks: list[Task] = Field(
        description="Evaluation sets on local files, each with name, kind, file, shots, examples and most: see "
        "docs/evaluate.md."
    )
    demonstrations: list[str] = Field(
        description="Prompts that show a base model at work: JSON-lines files of {'name', 'prompt', 'stop'}, or "
        "'builtin:translation', 'builtin:assistant'."
    )

    @model_validator(mode="after")
    def _names_fit(self) -> Evaluation:
        names = [task.name for task in self.tasks]
        if len(set(names)) < len(names):
            raise ValueError(f"two tasks of one name among {names}")
        return self


class Memorization(Section):
    """How much of its training text a model says word for word."""

    documents: PositiveInt = Field(description="Documents whose beginning is the prompt, of each split.")
    prompt_tokens: PositiveInt = Field(description="Tokens of a document that the model is given.")
    new_tokens: PositiveInt = Field(description="Tokens of an answer or a free sample, at most.")
    free_samples: PositiveInt = Field(description="Texts that the model writes without a prompt.")
    recited: PositiveInt = Field(description="A run of so many tokens counts as recited.")
    sets: list[str] = Field(description="Evaluation sets (JSON lines or text) to look for in the shards.")


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
    cost_change: Positive = Field(description="Relative change of the CPU seconds a page of extract, likewise.")
    pretrain_flops: Positive = Field(
        description="Floating-point operations of pretraining, 6 a parameter and token, that need no asking."
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
        return self

    def section(self, name: str) -> dict[str, Any]:
        """The section as plain data, for fingerprints; file names in it are not resolved."""
        value: BaseModel = getattr(self, name)
        return value.model_dump(mode="json")

    def to_yaml(self) -> str:
        """The recipe as YAML that `load` reads back to an equal one."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)


def load(path: str | Path, overrides: dict[str, Any] | None = None) -> Recipe:
    """Read a recipe file (a URI too); `overrides` maps dotted keys (`sft.epochs`) to values that replace the file's.

    Relative paths in it are relative to the working folder, as on a command line.
    Raises `InputError` where there is no such file, `RecipeError` with file, line and key for anything wrong in it.
    """
    folder, _, file = str(path).rpartition("/")
    if "://" in folder:
        return parse(Storage(folder).read(file).decode("utf-8", "replace"), str(path), overrides)
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"recipe {path} cannot be read: {error.strerror}", "name a file, see recipes/") from error
    return parse(text, str(path), overrides)


def parse(text: str, name: str, overrides: dict[str, Any] | None = None) -> Recipe:
    """As `load`, from the text of a recipe; `name` stands for the file in errors."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}:{mark.line + 1}" if mark else name
        problem = getattr(error, "problem", error)
        if isinstance(error, yaml.constructor.ConstructorError):  # a tag: safe_load builds no objects and calls nothing
            raise RecipeError(f"{where}: {problem}", "write plain values: a recipe has no tags") from error
        raise RecipeError(f"{where}: not YAML: {problem}", "correct the line") from error
    _refuse_duplicates(node, name)
    if not isinstance(data, dict):
        raise RecipeError(f"{name}: a recipe is a mapping of sections", "start from recipes/demo.yaml")
    for key, value in (overrides or {}).items():
        _override(data, key, value, name)
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        lines = [f"{name}:{_line(node, e['loc'])}: {_key(e['loc'])}: {_reason(e)}" for e in error.errors()]
        raise RecipeError("\n".join(lines), "correct the keys above; recipes/demo.yaml is a complete example") from None


def _refuse_duplicates(node: yaml.Node | None, name: str, looked: set[int] | None = None) -> None:
    """YAML takes the last of two equal keys in silence. `looked`: nodes to which an alias may lead again."""
    looked = set() if looked is None else looked
    if isinstance(node, yaml.MappingNode) and id(node) not in looked:
        looked.add(id(node))
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen:
                raise RecipeError(f"{name}:{key.start_mark.line + 1}: {key.value}: given twice", "remove one of them")
            seen.add(key.value)
            _refuse_duplicates(value, name, looked)


def _override(data: dict[str, Any], key: str, value: Any, name: str) -> None:
    *folders, last = key.split(".")
    for folder in folders:
        data = data.get(folder, {})
        if not isinstance(data, dict):
            break
    if not isinstance(data, dict) or last not in data:
        raise RecipeError(f"override {key!r}: {name} has no such key", "use the dotted key of a value in the recipe")
    data[last] = value


def _key(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location) or "recipe"


def _reason(error: Any) -> str:
    if error["type"] == "extra_forbidden":
        return "unknown key"
    if error["type"] == "missing":
        return "missing"
    given = error.get("input")
    shown = "" if isinstance(given, (dict, BaseModel)) else f" (given: {json.dumps(given, default=str)})"
    return f"{error['msg']}{shown}"


def _line(node: yaml.Node | None, location: tuple[int | str, ...]) -> int:
    """Line of the deepest part of `location` that stands in the file."""
    line = 1
    for part in location:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == str(part):
                    line, node = key.start_mark.line + 1, value
                    break
            else:
                break
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            break
    return line
