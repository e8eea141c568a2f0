"""The word split that all quality scores, MinHash and decontamination share."""

from __future__ import annotations

import re

# Letters and marks of scripts without spaces between words: Thai, Lao, Burmese, Khmer, Hiragana, Han. As by the default
# rules of Unicode (UAX #29), each character with its marks is a word; a run of Katakana is one word.
_UNSPACED = (
    r"\u0e01-\u0e3a\u0e40-\u0e4e\u0e81-\u0ece\u0edc-\u0edf\u1000-\u103f\u1050-\u108f\u109a-\u109d\u1780-\u17d3"
    r"\u17d7\u17dc\u17dd\u3005-\u3007\u3041-\u309f\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
# As spaCy's English tokenizer, with which FineWeb counts: do|n't, it|'s, e|-|mail, 7|-|14; but COVID-19, 3.14, 401(k.
# Initials and abbreviations keep their dot (U.S., J., vs.), and and/or is one word: spaCy's exceptions for English.
_DOTTED = (
    "Adm|Ak|Ala|Apr|Ariz|Ark|Aug|Bros|Calif|Co|Colo|Conn|Corp|Dec|Del|Dr|E\\.g|Feb|Fla|Ga|Gen|Gov|I\\.e|Ia|Id|Ill|Inc|Ind"
    "|Jan|Jr|Jul|Jun|Kan|Kans|Ky|La|Ltd|Mar|Mass|Md|Messrs|Mich|Minn|Miss|Mo|Mont|Mr|Mrs|Ms|Mt|Neb|Nebr|Nev|Nov|Oct"
    "|Okla|Ore|Pa|Ph\\.D|Prof|Rep|Rev|Sen|Sep|Sept|St|Tenn|Va|Wash|Wis|a\\.m|co|e\\.g|i\\.e|p\\.m|v\\.s|vs"
)
_ABBREVIATION = rf"(?<!\w)(?:(?:[A-ZÀ-ÖØ-Þ]\.)+|[a-z]\.|(?:{_DOTTED})\.|and/or)(?!\w)"
_CONTRACTION = r"['’](?i:s|ll|re|ve|d|m)\b"
_LETTER, _LETTER_OR_DIGIT = rf"[^\W\d_{_UNSPACED}]", rf"[^\W_{_UNSPACED}]"
_WORD = re.compile(
    rf"(?i:https?)://\S+|{_ABBREVIATION}|{_LETTER}+?(?=(?i:n['’]t)\b)|(?i:n['’]t)\b|{_CONTRACTION}"
    rf"|{_LETTER_OR_DIGIT}+(?:(?:(?<=\d)[.,:/]+(?=\d)|(?<=[^\W\d_])[.&-](?=\d)|(?<=[^\W\d_])[.&](?=[^\W\d_])|_+"
    rf"|(?<=\w)\((?=\w)|(?<=[^\W\d_])/(?=\d)"
    rf"|(?!{_CONTRACTION})['’]){_LETTER_OR_DIGIT}+)*"
    rf"|[{_UNSPACED}](?:[{_UNSPACED}](?<!\w))*"
    r"|\.{2,}|-{2,}|@\w+|_|[^\w\s]"
)


def words(text: str) -> list[str]:
    """Words and punctuation marks of a text, in order; single characters in scripts without spaces between words."""
    split: list[str] = []
    for chunk in text.split():
        if chunk.isascii() and chunk.isalpha():  # most chunks are one word: this spares the pattern
            split.append(chunk)
        else:
            split += _WORD.findall(chunk)
    return split
