"""Main text of a page by trafilatura, under a guard of CPU time."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any, Literal

import trafilatura
from selectolax.lexbor import LexborHTMLParser

Mode = Literal["precision", "default", "fast"]
TITLE_CHARS = 500  # shown to people; a longer one is no title


@dataclass(frozen=True)
class Extracted:
    """Main text and title of a page."""

    text: str | None
    title: str | None


class _TooSlow(BaseException):
    """Not an `Exception`: trafilatura and its helpers catch those of their steps and go on."""


def guarded(page: Callable[[], dict[str, Any]], seconds: float) -> dict[str, Any]:
    """What `page` returns, or a row with the reason why it did not: `page_timeout` (after so much CPU time of this
    process), `extraction_error` (a defect met in the page: it costs its own row).

    Only in the main thread. Code in C is interrupted when it comes back to Python.
    """

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise _TooSlow

    before = signal.signal(signal.SIGPROF, stop)
    try:
        try:
            signal.setitimer(signal.ITIMER_PROF, seconds, 1.0)  # again each second: a callback from C loses one
            return page()
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    except _TooSlow:
        signal.setitimer(signal.ITIMER_PROF, 0)
        return {"reason": "page_timeout", "detail": f"more than {seconds:g} CPU seconds"}
    except MemoryError:
        raise
    except Exception as error:
        return {"reason": "extraction_error", "detail": repr(error)[:500]}
    finally:
        signal.signal(signal.SIGPROF, before)


def extract(html: str, url: str, mode: Mode) -> Extracted:
    """The main text and title; text is None where there is none. Run it under `guarded`."""
    # deduplicate=True would make a page's text depend on the pages before it (trafilatura#778).
    found = trafilatura.bare_extraction(
        html,
        url=url or None,
        favor_precision=mode == "precision",
        fast=mode == "fast",
        include_comments=False,
        deduplicate=False,
    )
    text = (found.text or "").strip() if found is not None else ""
    text = text.encode("utf-8", "replace").decode("utf-8")  # no lone surrogates beyond this point
    return Extracted(text, _title(html)) if text else Extracted(None, None)


def _title(html: str) -> str | None:
    """The page's <title>. trafilatura's own comes only with all metadata, dates too, which cost more than the text."""
    node = LexborHTMLParser(html).css_first("title")
    return (" ".join(node.text().split())[:TITLE_CHARS] or None) if node is not None else None
