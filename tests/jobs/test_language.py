"""The language of a text, and the gate before extraction."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.page import language
from tests.jobs.support import PROSE


def test_language_of_a_text_and_the_gate() -> None:
    assert language.detect(PROSE, ["en"])[:2] == ("en", "en") and language.detect(PROSE, ["en"])[2] > 0.65
    german = "Der Hafen lag still, und niemand sprach vom Sturm der letzten Nacht."
    assert language.detect(german, ["en"])[:2] == ("de", "en") and language.detect(german, ["en"])[2] < 0.1
    assert language.detect(german, ["en", "de"])[1] == "de" and language.detect(german, ["en", "de"])[2] > 0.65
    assert language.gate("<p>x</p>", None, ["en"]) == 1.0  # near-empty text passes
    assert language.gate(f"<script>{'var x;' * 50}</script><p>{PROSE}</p>", None, ["en"]) > 0.65
    assert language.gate(f"<p>{german}</p>", None, ["en", "de"]) > 0.65
    cld2 = {"languages": [{"code": "de", "text-covered": 0.6}, {"code": "en", "text-covered": 0.3}]}
    assert language.gate(PROSE, {"languages": cld2["languages"][:1]}, ["en"]) == 0.0
    assert language.gate(PROSE, cld2, ["en"]) == 0.3
    assert language.gate(f"<p>{german}</p>", cld2, ["en"]) < 0.02  # its menu was English, not its text
    assert language.gate("<p>x</p>", cld2, ["en"]) == 0.3
    assert language.gate(PROSE, cld2, ["de", "en"]) == pytest.approx(0.9)
    assert language.gate(PROSE, {"languages": [{"code": "zh-Hant", "text-covered": 0.5}]}, ["zh"]) == 0.5


def test_the_gate_believes_a_record_of_one_language() -> None:
    sentence = "This is an ordinary English sentence about a dog and a cat."
    assert language.detect(sentence, ["en"])[:2] == ("en", "en")
    assert language.detect(sentence, ["en"])[2] > 0.9
    german = "<p>" + "Das ist ein ganz gewöhnlicher deutscher Satz über Hund und Katze. " * 5 + "</p>"
    assert language.gate(german, None, ["en"]) < 0.1
    assert language.gate(german, {"languages": [{"code": "en", "text-covered": 0.7}]}, ["en"]) == 0.7
    assert language.gate("<p>kurz</p>", None, ["en"]) == 1.0


@settings(deadline=None, max_examples=50)
@given(st.text(max_size=300))
def test_no_text_breaks_the_language_model(text: str) -> None:
    assert 0 <= language.detect(text.encode("utf-8", "replace").decode(), ["en", "fr"])[2] <= 1
