"""Main text of a page by trafilatura, under a guard of CPU time."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Literal

import trafilatura

Mode = Literal["precision", "default", "fast"]


@dataclass(frozen=True)
class Extracted:
    """Text and title of a page, or the reason why there is none, with detail."""

    text: str | None
    title: str | None
    reason: str | None
    detail: str | None


class _TooSlow(Exception):
    pass


@contextmanager
def _cpu_limit(seconds: float) -> Iterator[None]:
    """Interrupt the block after so much CPU time of this process. Only in the main thread; Python code only."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise _TooSlow

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def extract(html: str, url: str, mode: Mode, seconds: float) -> Extracted:
    """The main text. Reasons: `page_timeout`, `extraction_error` (a defect met in the page), `no_main_text`."""
    try:
        with _cpu_limit(seconds):
            # deduplicate=True would make a page's text depend on the pages before it (trafilatura#778).
            found = trafilatura.bare_extraction(
                html,
                url=url or None,
                favor_precision=mode == "precision",
                fast=mode == "fast",
                include_comments=False,
                deduplicate=False,
            )
    except _TooSlow:
        return Extracted(None, None, "page_timeout", f"more than {seconds} CPU seconds")
    except MemoryError:
        raise
    except Exception as error:  # a page can break the parser in any way: it costs its own row
        return Extracted(None, None, "extraction_error", repr(error)[:500])
    text = (found.text or "").strip() if found is not None else ""
    text = text.encode("utf-8", "replace").decode("utf-8")  # no lone surrogates beyond this point
    if not text:
        return Extracted(None, None, "no_main_text", None)
    return Extracted(text, found.title, None, None)
