"""Questions about the assistant's identity, and others of like wording, that no training stage has seen."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

QUESTIONS = Path(__file__).parent / "data" / "identity_held_out.jsonl"
NAME = "crawl2chat"  # what the assistant of the bundled conversations calls itself


def questions() -> list[dict[str, Any]]:
    """The questions: `user` is the message, `claims` whether the answer should claim the name."""
    return [json.loads(line) for line in QUESTIONS.read_text(encoding="utf-8").splitlines()]


def assets() -> dict[str, str]:
    """Sha256 by name of the file of questions, for the fingerprint."""
    return {QUESTIONS.name: hashlib.sha256(QUESTIONS.read_bytes()).hexdigest()}
