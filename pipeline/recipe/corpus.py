"""Sections of the corpus: from WARC files to token shards."""

from __future__ import annotations

import re
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

# Year and week; the three oldest crawls have names of their own (https://index.commoncrawl.org).
CRAWL_ID = r"^CC-MAIN-(\d{4}-\d{2}|2008-2009|2009-2010|2012)$"


class Input(Section):
    """The WARC files. Exactly one of `warcs` and `crawl` is set."""

    warcs: list[str] = Field(
        description="WARC files: paths, globs, URLs, or lists of them (.txt, .paths, also .gz; a file or a URL), one "
        "entry per line."
    )
    crawl: str | None = Field(
        description="Common Crawl id; the crawl's warc.paths.gz is read over HTTPS.",
        examples=["CC-MAIN-2025-05"],
    )
    max_warcs: PositiveInt | None = Field(
        description="Number of files to read, the first in order of their location; null for all."
    )

    @field_validator("crawl")
    @classmethod
    def _is_an_id(cls, crawl: str | None) -> str | None:
        if crawl is not None and not re.fullmatch(CRAWL_ID, crawl):
            raise ValueError("no id of a crawl: write it with year and week, as CC-MAIN-2025-05")
        return crawl

    @model_validator(mode="after")
    def _one_source(self) -> Input:
        if bool(self.warcs) == (self.crawl is not None):
            raise ValueError("give either 'warcs' or 'crawl'")
        return self

    @model_validator(mode="after")
    def _no_password(self) -> Input:
        if any(holds_password(location) for location in self.warcs):  # not shown in the error, which is logged
            raise ValueError("a URL of 'warcs' holds a password, and would be written to every manifest")
        return self


class BlockList(Section):
    """Domains, pages and words of URLs whose pages are dropped before anything of them is parsed."""

    source: str = Field(
        examples=["ut1", "recipes/blocklists/demo"],
        description="'ut1' for the full list (UT1, in the datatrove package), or a folder in UT1's layout: "
        "<category>/domains, one domain per line, and <category>/urls, one host/path per line.",
    )
    categories: list[str] = Field(description="Categories (folders) to use; empty for all.")
    words: list[str] = Field(
        description="Words that drop a page if they are whole words of its URL, in any case. In this and the following "
        "lists, an entry 'file:PATH' stands for the lines of a file, 'datatrove:NAME' for a list in that package."
    )
    soft_words: list[str] = Field(
        description="Words that drop a page if at least `soft_least` of them are whole words of its URL."
    )
    soft_least: PositiveInt = Field(description="Number of different soft words that drop a page.")
    sub_words: list[str] = Field(
        description="Strings that drop a page if its URL contains them; only letters and digits are compared."
    )
    allow: list[str] = Field(description="Domains that are never blocked, with all their subdomains.")


class C4Lines(Section):
    """Lines that C4 removes (Raffel et al. 2020, section 2.2).

    The text itself stays whole; only the scores of C4 and FineWeb leave them out.
    """

    min_words: Count = Field(description="Fewest words of a line, split at spaces; 0 for no limit. C4: 3.")
    max_word_chars: PositiveInt = Field(description="Longest word that a line may have, characters. C4: 1000.")
    require_punctuation: bool = Field(
        description="Keep only lines that end in . ? ! or a quotation mark, not in an ellipsis. C4: yes; FineWeb: no."
    )
    remove_citations: bool = Field(description="Remove Wikipedia's marks from lines: [1], [edit], [citation needed].")
    drop_javascript: bool = Field(description="Remove lines with the word 'javascript'.")
    drop_policies: bool = Field(description="Remove lines on terms of use, privacy and cookies.")


class Extract(Section):
    """From WARC records to text with scores."""

    block_list: BlockList
    max_failed_warcs: Fraction = Field(
        description="Share of the files that may fail to be fetched or read (each is listed); above it the stage fails."
    )
    max_html_bytes: PositiveInt = Field(description="Largest page, bytes; a larger one is dropped unread.")
    page_seconds: Positive = Field(description="Limit per page, CPU seconds; a page that needs more is dropped.")
    languages: dict[str, list[str]] = Field(
        min_length=1,
        description="Languages of the corpus, by their fastText code, each with its stop words for Gopher's rule. In "
        "scripts without spaces between words (zh, ja, th, lo, my, km) a character counts as a word: set limits for "
        "such a language in `filter.by_language`.",
    )
    language_gate: Fraction = Field(
        description="Before extraction: a page is dropped when its share of text in these languages is below this, by "
        "its cld2 record and, where it has none or other languages cover most of the page, by fastText on the stripped "
        "text. Set it low, so that it only drops what cannot pass `filter.languages`.",
    )
    extractor: Literal["precision", "default", "fast", "resiliparse"] = Field(
        description="Extractor of the main text: trafilatura in one of three modes, or resiliparse, which costs least."
    )
    default_below: Count = Field(
        description="With `precision`: a page of which it gives fewer characters than this is extracted in mode "
        "`default` as well, and the longer text is taken; 0 for never."
    )
    c4_lines: C4Lines
    quality_model: str | None = Field(
        description="fastText model of jobs/train_quality.py, whose score becomes the column `quality`; null for none."
    )


class _Deduplicate(Section):
    """Exact copies, then MinHash-LSH, which finds a pair of similarity s with probability 1 - (1 - s^rows)^bands."""

    ngram_words: PositiveInt = Field(description="Words per n-gram; texts are compared by their sets of n-grams.")
    bands: PositiveInt = Field(
        description="Bands of a MinHash signature; two texts that agree in all hashes of a band are a candidate pair."
    )
    rows: PositiveInt = Field(description="Hashes (rows) per band.")
    max_bucket: PositiveInt = Field(
        description="Largest bucket, documents, whose pairs are all candidates; in a larger one each document is "
        "paired with the first."
    )
    against: list[str] = Field(
        description="Deduplicate artifacts of earlier corpora, as folders below the root: copies of their documents "
        "are dropped. Only their signatures are read."
    )

    @field_validator("verify", mode="before", check_fields=False)
    @classmethod
    def _is_a_truth_value(cls, value: Any) -> Any:
        if not isinstance(value, bool):  # 1 equals True
            raise ValueError("must be true or false")
        return value


_Verify = Field(description="Keep a candidate pair only if its Jaccard similarity is at least `min_jaccard`.")


class VerifiedDeduplicate(_Deduplicate):
    """With pairs verified by their signatures."""

    verify: Literal[True] = _Verify
    min_jaccard: Fraction = Field(description="Least Jaccard similarity of near copies, estimated by their signatures.")


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
    """Personal data that is replaced by placeholders `<KIND>`."""

    kinds: list[PiiKind] = Field(min_length=1, description="Kinds to replace. PERSON needs `person_model`.")
    person_model: str | None = Field(
        description="Folder of a spaCy pipeline that finds names, for PERSON; null without it."
    )

    @model_validator(mode="after")
    def _names_need_a_model(self) -> Redact:
        if ("PERSON" in self.kinds) != (self.person_model is not None):
            raise ValueError("kind PERSON and person_model go together: give both or neither")
        return self


class Decontaminate(Section):
    """Documents that are dropped after redaction: those that hold text of an evaluation set, and those taken down."""

    sets: list[str] = Field(description="Files of evaluation sets: JSON lines, of which all strings count, or text.")
    ngram_words: PositiveInt = Field(
        description="Words per n-gram; a document that shares one with a set is dropped. GPT-3: 13 (Brown et al. 2020)."
    )
    take_down: list[str] = Field(description="Files that list URLs, hosts or document ids to remove, one per line.")


class _Tokenizer(Section):
    sample_bytes: PositiveInt = Field(description="Text to train on, or to measure compression on, UTF-8 bytes.")


class TrainedTokenizer(_Tokenizer):
    """Byte-level BPE, trained on the corpus."""

    source: Literal["train"] = Field(description="'train': trained on the corpus.")
    vocabulary: Annotated[int, Field(ge=512)] = Field(description="Vocabulary size, special tokens included.")
    pattern: Literal["llama-bpe", "qwen2"] = Field(
        description="Pre-tokenization pattern: llama-bpe is GPT-4's; qwen2 keeps digits single."
    )


class GivenTokenizer(_Tokenizer):
    """An existing byte-level BPE."""

    source: str = Field(
        examples=["gpt2", "cl100k_base"],
        pattern=r"^(gpt2|cl100k_base|.*/.*)$",
        description="'train' trains one on the corpus; 'gpt2' and 'cl100k_base' are read from tiktoken's cache "
        "(TIKTOKEN_CACHE_DIR) or a package that contains them; a path with a slash names a folder with a "
        "tokenizer.json of byte-level BPE.",
    )


def _kind(section: Any) -> str:
    source = section.get("source") if isinstance(section, dict) else getattr(section, "source", None)
    return "train" if source == "train" else "given"


Tokenizer = Annotated[
    Annotated[TrainedTokenizer, Tag("train")] | Annotated[GivenTokenizer, Tag("given")], Discriminator(_kind)
]


class Shard(Section):
    """Token shards, shuffled by hash."""

    shard_tokens: PositiveInt = Field(
        description="Tokens per shard, at most on average: the number of shards is rounded up to a power of two."
    )
    validation: Fraction = Field(description="Share of the documents in the validation split, by hash of their id.")
    train_tokens: PositiveInt | None = Field(
        description="Number of training tokens, exactly (the last document is cut); null: every document once."
    )
    mix: dict[str, Fraction] = Field(
        description="Decontaminate artifacts of other corpora, as folders below the root, each with its share of "
        "`train_tokens`; the rest comes from this run. A corpus that is too small is repeated, up to four times."
    )

    @model_validator(mode="after")
    def _shares_fit(self) -> Shard:
        if self.mix and self.train_tokens is None:
            raise ValueError("mix needs train_tokens, of which its shares are")
        if sum(self.mix.values()) >= 1:
            raise ValueError(f"the shares of mix leave nothing for this run's corpus ({sum(self.mix.values()):g})")
        return self
