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
                    type=PydanticCustomError("limit", "{reason}", {"reason": reason(one)}),
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
