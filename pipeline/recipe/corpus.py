"""Sections of the corpus: from WARC files to token shards."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from pipeline.recipe.base import (
    Count,
    Fraction,
    Positive,
    PositiveInt,
    Section,
)
from pipeline.storage import holds_password

CRAWL_ID = r"^CC-[A-Za-z0-9-]+$"


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


class _Deduplicate(Section):
    """Exact copies, then MinHash-LSH: (1 - (1 - s^rows)^bands) is the chance to find a pair of Jaccard s."""

    ngram_words: PositiveInt = Field(description="Words of a run; texts are compared by the runs they share.")
    bands: PositiveInt = Field(description="Two texts that agree in all hashes of a band are a pair to look at.")
    rows: PositiveInt = Field(description="Hashes a band.")
    max_bucket: PositiveInt = Field(description="Buckets up to this size give all pairs; larger ones a star.")
    against: list[str] = Field(
        description="Folders, below the root, of deduplicate artifacts of earlier corpora: what they hold already is "
        "dropped here, by their signatures alone."
    )

    @field_validator("verify", mode="before", check_fields=False)
    @classmethod
    def _is_a_truth_value(cls, value: Any) -> Any:
        if not isinstance(value, bool):  # 1 equals True
            raise ValueError("must be true or false")
        return value


_Verify = Field(description="Keep a pair only if its estimated Jaccard reaches `min_jaccard`.")


class VerifiedDeduplicate(_Deduplicate):
    """With pairs verified by their signatures."""

    verify: Literal[True] = _Verify
    min_jaccard: Fraction = Field(description="Least share of common runs of words of a verified pair.")


class UnverifiedDeduplicate(_Deduplicate):
    """With every pair that shares a band."""

    verify: Literal[False] = _Verify


def _verifies(section: Any) -> str:
    verify = section.get("verify") if isinstance(section, dict) else getattr(section, "verify", None)
    return "unverified" if verify is False else "verified"


Deduplicate = Annotated[
    Annotated[VerifiedDeduplicate, Tag("verified")] | Annotated[UnverifiedDeduplicate, Tag("unverified")],
    Discriminator(_verifies),
]

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


class _Tokenizer(Section):
    sample_bytes: PositiveInt = Field(description="UTF-8 bytes of text to learn from, or to measure compression on.")


class TrainedTokenizer(_Tokenizer):
    """Byte-level BPE, learned from the corpus."""

    source: Literal["train"] = Field(description="'train': learned from the corpus.")
    vocabulary: Annotated[int, Field(ge=512)] = Field(description="Ids, special tokens included.")
    pattern: Literal["llama-bpe", "qwen2"] = Field(
        description="Split pattern: llama-bpe is GPT-4's; qwen2 keeps digits single."
    )


class GivenTokenizer(_Tokenizer):
    """Byte-level BPE that somebody learned before."""

    source: str = Field(
        examples=["gpt2", "cl100k_base"],
        pattern=r"^(gpt2|cl100k_base|.*/.*)$",
        description="'train' learns it from the corpus; 'gpt2' and 'cl100k_base' are read from tiktoken's cache "
        "(TIKTOKEN_CACHE_DIR) or a package that carries them; a path with a slash names a folder with a tokenizer.json "
        "of byte-level BPE.",
    )


def _kind(section: Any) -> str:
    source = section.get("source") if isinstance(section, dict) else getattr(section, "source", None)
    return "train" if source == "train" else "given"


Tokenizer = Annotated[
    Annotated[TrainedTokenizer, Tag("train")] | Annotated[GivenTokenizer, Tag("given")], Discriminator(_kind)
]


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
