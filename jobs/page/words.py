"""The one word split that all quality scores and MinHash share."""

from __future__ import annotations

import re

# As spaCy's English splits, with which FineWeb counts: do|n't, it|'s, e|-|mail, 7|-|14; but COVID-19, 3.14, U.S.
_CONTRACTION = r"['’](?:s|ll|re|ve|d|m)\b"
_WORD = re.compile(
    rf"https?://\S+|[^\W\d_]+?(?=n['’]t\b)|n['’]t\b|{_CONTRACTION}"
    r"|[^\W_]+(?:(?:(?<=\d)[.,:/]+(?=\d)|(?<=[^\W\d_])[.&-](?=\d)|(?<=[^\W\d_])[.&](?=[^\W\d_])|_+"
    rf"|(?!{_CONTRACTION})['’])[^\W_]+)*"
    r"|\.{2,}|-{2,}|@\w+|_|[^\w\s]",
    re.IGNORECASE,
)


def words(text: str) -> list[str]:
    """Words and punctuation marks, in order."""
    return _WORD.findall(text)
