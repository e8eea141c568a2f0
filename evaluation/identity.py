"""Questions about who the assistant is, in wordings that no stage of training has seen."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

QUESTIONS = Path(__file__).parent / "data" / "identity_held_out.jsonl"
NAME = "crawl2chat"  # what the assistant of the bundled conversations calls itself


def questions() -> list[dict[str, Any]]:
    """Each with `user`, and whether the answer should claim the name (`claims`)."""
    return [json.loads(line) for line in QUESTIONS.read_text(encoding="utf-8").splitlines()]


def assets() -> dict[str, str]:
    """Sha256 of the questions, for the fingerprint."""
    return {QUESTIONS.name: hashlib.sha256(QUESTIONS.read_bytes()).hexdigest()}
