"""Section `filter`: the thresholds of Gopher, C4 and FineWeb."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from pipeline.recipe.base import (
    Count,
    Fraction,
    NotNegative,
    Positive,
    PositiveInt,
    Section,
    reason,
)


class Gopher(Section):
    """Thresholds of Gopher's rules (Rae et al. 2021, table A1), as FineWeb uses them."""

    min_words: Count = Field(description="Fewest words, punctuation marks not counted. Gopher: 50.")
    max_words: PositiveInt = Field(description="Most words, punctuation marks not counted. Gopher: 100000.")
    min_mean_word_length: NotNegative = Field(description="Least mean word length, characters. Gopher: 3.")
    max_mean_word_length: Positive = Field(description="Largest mean word length, characters. Gopher: 10.")
    max_symbol_word_ratio: Fraction = Field(description="Most '#' signs, or ellipses, per word. Gopher: 0.1.")
    max_bullet_lines: Fraction = Field(description="Largest share of lines that begin with a bullet. Gopher: 0.9.")
    max_ellipsis_lines: Fraction = Field(description="Largest share of lines that end with an ellipsis. Gopher: 0.3.")
    min_alpha_words: Fraction = Field(description="Least share of words with at least one letter. Gopher: 0.8.")
    marks_are_words: bool = Field(
        description="Whether punctuation marks count as words in `min_alpha_words`. Yes is how datatrove made FineWeb: "
        "it drops prose with many marks. The paper counts words."
    )
    min_stop_words: Count = Field(description="Fewest different stop words of `extract.languages`. Gopher: 2.")
    max_duplicate_lines: Fraction = Field(description="Largest share of lines that repeat an earlier one. Gopher: 0.3.")
    max_duplicate_line_chars: Fraction = Field(
        description="Largest share of characters in lines that repeat an earlier one. Gopher: 0.2."
    )
    max_duplicate_paragraphs: Fraction = Field(
        description="Largest share of paragraphs that repeat an earlier one. Gopher: 0.3."
    )
    max_duplicate_paragraph_chars: Fraction = Field(
        description="Largest share of characters in paragraphs that repeat an earlier one. Gopher: 0.2."
    )
    max_top_ngram_chars: dict[Literal["2", "3", "4"], Fraction] = Field(
        description="By n: largest share of characters covered by the most frequent n-gram of words."
    )
    max_duplicate_ngram_chars: dict[Literal["5", "6", "7", "8", "9", "10"], Fraction] = Field(
        description="By n: largest share of characters covered by all n-grams of words that repeat an earlier one."
    )

    @model_validator(mode="after")
    def _limits_fit(self) -> Gopher:
        for least, most in (("min_words", "max_words"), ("min_mean_word_length", "max_mean_word_length")):
            if getattr(self, least) > getattr(self, most):
                raise ValueError(
                    f"{least} ({getattr(self, least)}) exceeds {most} ({getattr(self, most)}): no text would be kept"
                )
        return self


class C4(Section):
    """C4's rules on whole documents (Raffel et al. 2020, section 2.2), as far as FineWeb keeps them.

    They read the lines that `extract.c4_lines` leave.
    """

    min_sentences: Count = Field(description="Fewest sentences in the lines that C4 keeps; 0 for no limit. C4: 5.")
    drop_lorem_ipsum: bool = Field(description="Drop documents with the words 'lorem ipsum'.")
    drop_curly_brace: bool = Field(description="Drop documents with a curly brace, most of which are code. C4: yes.")


class FineWeb(Section):
    """FineWeb's own rules (Penedo et al. 2024, section 3.6), on the lines that `extract.c4_lines` leave."""

    min_line_punctuation: Fraction = Field(description="Least share of lines that end in a terminal punctuation mark.")
    short_line_chars: PositiveInt = Field(
        description="Characters up to which a line is short: 10, 20, 30, 40, 50 or 60. FineWeb: 30."
    )
    max_short_lines: Fraction = Field(description="Largest share of short lines.")
    max_duplicate_line_chars: Fraction = Field(
        description="Largest share of characters in lines that repeat an earlier one, of the lines that C4 keeps."
    )
    max_newline_word_ratio: Positive = Field(description="Most line breaks per word. FineWeb: 0.3.")


class Filter(Section):
    """Which extracted documents are kept, decided from columns of scores alone."""

    languages: dict[str, Fraction] = Field(
        min_length=1,
        description="Languages to keep, of `extract.languages`, with their least fastText probability. FineWeb: 0.65.",
    )
    licenses: list[str] | None = Field(
        min_length=1,
        examples=[["cc0-*", "cc-by-[0-9]*"]],
        description="Keep only pages that declare one of these licenses (by rel=license, JSON-LD, or links to Creative "
        "Commons): patterns of names such as cc-by-4.0, or of URLs; null for all pages. A page's claim is no right.",
    )
    min_quality: Fraction | None = Field(description="Least score of `extract.quality_model`; null for no limit.")
    gopher: Gopher
    c4: C4
    fineweb: FineWeb
    by_language: dict[str, dict[Literal["gopher", "c4", "fineweb"], dict[str, Any]]] = Field(
        examples=[{"de": {"gopher": {"max_mean_word_length": 15}}}],
        description="Limits that differ for some of `languages`, by language, section and name: "
        '{"de": {"gopher": {"max_mean_word_length": 15}}}.',
    )

    @cached_property
    def for_language(self) -> dict[str, Filter]:
        """The rules for each language of `by_language`: its own limits, else those of all languages."""
        return {language: self._with(language) for language in self.by_language}

    def _with(self, language: str) -> Filter:
        rules = self.model_dump() | {"by_language": {}}
        for section, limits in self.by_language[language].items():
            for name, limit in limits.items():
                common = rules[section].get(name)
                both = isinstance(common, dict) and isinstance(limit, dict)  # limits by n, of n-grams
                rules[section][name] = common | limit if both else limit
        try:
            return Filter.model_validate(rules)
        except ValidationError as error:
            here = [
                InitErrorDetails(
                    type=PydanticCustomError("limit", "{reason}", {"reason": reason(detail)}),
                    loc=("by_language", language, *detail["loc"]),
                    input={},
                )
                for detail in error.errors()
            ]
            raise ValidationError.from_exception_data("Filter", here) from None

    @model_validator(mode="after")
    def _limits_fit(self) -> Filter:
        for language in self.by_language:
            if language not in self.languages:
                raise ValueError(f"by_language has {language!r}, which languages has not")
            self._with(language)
        return self
