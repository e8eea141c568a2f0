"""The one word split that all quality scores and MinHash share."""

from __future__ import annotations

import re

# A word is a run of letters and digits with inner marks (don't, e-mail, 3.14), or one other visible character.
_WORD = re.compile(r"\w+(?:[.'’_-]\w+)*|[^\w\s]")


def words(text: str) -> list[str]:
    """Words and punctuation marks, in order."""
    return _WORD.findall(text)
