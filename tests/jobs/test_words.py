"""The word split: as spaCy splits English, and by characters where no spaces divide words."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.page import words as word_split
from jobs.page.words import words


def test_words_are_split_as_spacy_splits_english() -> None:
    assert words("Don't pay 3.14, e-mail me!") == ["Do", "n't", "pay", "3.14", ",", "e", "-", "mail", "me", "!"]
    assert words("It's COVID-19 in the U.S.A; 7-14 days") == [
        "It", "'s", "COVID-19", "in", "the", "U.S.A", ";", "7", "-", "14", "days"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("at the U.N. and", ["at", "the", "U.N.", "and"]),
        ("Owls vs. hawks", ["Owls", "vs.", "hawks"]),
        ("near St. Ives, by E. M. Forster", ["near", "St.", "Ives", ",", "by", "E.", "M.", "Forster"]),
        ("i.e. so, etc.", ["i.e.", "so", ",", "etc", "."]),
        ("a 401(k) plan, f(x)", ["a", "401(k", ")", "plan", ",", "f(x", ")"]),
        ("over HTTP/2 and/or TCP", ["over", "HTTP/2", "and/or", "TCP"]),
        ("The end. A mist. (Dr. Who).", ["The", "end", ".", "A", "mist", ".", "(", "Dr.", "Who", ")", "."]),
    ],
)
def test_initials_abbreviations_and_brackets_inside_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("我们学校,ok。", ["我", "们", "学", "校", ",", "ok", "。"]),
        ("日本語のワープロで3.14円", ["日", "本", "語", "の", "ワープロ", "で", "3.14", "円"]),
        ("か\u3099ぎ々", ["か\u3099", "ぎ", "々"]),
        ("ที่ 10 บาท", ["ที่", "10", "บ", "า", "ท"]),
        ("ດີ ខ្ញុំ", ["ດີ", "ខ្", "ញុំ"]),
        ("날씨가 좋다", ["날씨가", "좋다"]),  # Korean has spaces
    ],
)
def test_a_character_is_a_word_where_no_spaces_divide_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected


# Nothing of the pattern reaches beyond a space, so that a text is split in pieces.
@settings(max_examples=500)
@given(
    st.lists(st.sampled_from(["don", "n't", "t", "'", "7", "-", ".", "http://", "é", "日", "@", " ", "\n", "\x85"])),
    st.text(),
)
def test_a_word_ends_at_a_space(parts: list[str], any_text: str) -> None:
    for text in ("".join(parts), any_text):
        assert words(text) == word_split._WORD.findall(text)
