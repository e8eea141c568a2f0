"""The plain functions on one page."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.archive import warc
from jobs.page import charset, extraction, language, pii, quality, urls
from jobs.page.words import words
from pipeline import recipe
from pipeline.errors import InputError

RECIPE = recipe.load(Path(__file__).parents[2] / "recipes/demo.yaml")
KINDS = list(RECIPE.redact.kinds)


@pytest.mark.parametrize(
    ("body", "header", "text", "name"),
    [
        ("\ufeffgrün".encode(), "text/html; charset=latin1", "grün", "utf-8"),
        ("grün".encode("cp1252"), "text/html; charset=ISO-8859-1", "grün", "cp1252"),
        ("привет".encode("cp1251"), 'text/html; charset="windows-1251"', "привет", "cp1251"),
        ('<meta charset="shift_jis">日本'.encode("cp932"), "text/html", '<meta charset="shift_jis">日本', "cp932"),
        ("grün".encode(), "text/html", "grün", "utf-8"),
        ("grün".encode("cp1252") + b"....", "", "grün....", "cp1252"),
        ("grün".encode(), "text/html; charset=nonsense", "grün", "utf-8"),
    ],
)
def test_charset_in_the_order_of_whatwg(body: bytes, header: str, text: str, name: str) -> None:
    assert charset.decode(body, header) == (text, name)


@given(st.binary(max_size=300), st.text(max_size=60))
def test_charset_never_fails(body: bytes, header: str) -> None:
    text, name = charset.decode(body, header)
    assert isinstance(text, str)
    assert name


@given(st.text(max_size=400))
def test_scores_never_fail_and_fractions_are_fractions(text: str) -> None:
    found = quality.scores(text, words(text), RECIPE.extract.languages["en"], RECIPE.extract.c4_lines)
    assert set(found) == {*quality.INTEGERS, *quality.FRACTIONS, *quality.FLAGS}
    for name in quality.FRACTIONS:
        most = float("inf") if name in ("mean_word_length", "symbol_word_ratio", "newline_word_ratio") else 1.0
        assert 0 <= found[name] <= most, name
    quality.decide(found | {"language": "en", "language_score": 1.0}, RECIPE.filter)


def test_repetition_is_found() -> None:
    line = "This is the same sentence again and again.\n"
    found = quality.scores(line * 20, words(line * 20), RECIPE.extract.languages["en"], RECIPE.extract.c4_lines)
    assert found["duplicate_lines"] == pytest.approx(19 / 20)
    assert found["duplicate_5gram_chars"] > 0.5
    assert quality.decide(found | {"language": "en", "language_score": 1.0}, RECIPE.filter) == "gopher_duplicate_lines"
    assert quality.decide(found | {"language": "en", "language_score": 0.64}, RECIPE.filter) == "other_language"


def test_block_list(tmp_path: Path) -> None:
    (tmp_path / "gambling").mkdir()
    (tmp_path / "gambling" / "domains").write_text("bad.example\nbücher.example\ngood.example\n")
    (tmp_path / "gambling" / "urls").write_text("mixed.example/bad/page\n")
    (tmp_path / "words.txt").write_text("# words\ncasino\n")
    lists = {"words": [f"file:{tmp_path}/words.txt"], "soft_words": ["sex", "cam", "girl"], "sub_words": ["free porn"]}
    recipe = RECIPE.extract.block_list.model_copy(update=lists | {"allow": ["good.example"]})
    blocked = urls.BlockList(urls.hashed(urls.listed(str(tmp_path), [])), urls.terms(recipe))
    for url in (
        "https://bad.example/",
        "http://WWW.Bad.Example:8080/x",
        "https://a.b.bad.example./",
        "https://xn--bcher-kva.example/",
    ):
        assert blocked.reason(url, urls.host_of(url)) == "blocked_domain", url
    for url in ("https://ok.example/CASINO/x", "https://ok.example/sex-cam", "https://ok.example/best-FreePorn1"):
        assert blocked.reason(url, "ok.example") == "blocked_word"
    for url in ("http://www.mixed.example/bad/page/", "https://mixed.example/bad/page#top"):
        assert blocked.reason(url, urls.host_of(url)) == "blocked_url"
    for url in (
        "https://notbad.example/",
        "https://bad.example.org/",
        "https://ok.example/casinos",
        "https://ok.example/sex-education",
        "https://mixed.example/bad/page2",
        "https://a.good.example/casino",
    ):
        assert blocked.reason(url, urls.host_of(url)) is None, url
    with pytest.raises(InputError, match="nothing"):
        list(urls.listed(str(tmp_path), ["nothing"]))
    with pytest.raises(InputError, match="gone"):
        urls.terms(recipe.model_copy(update={"sub_words": ["file:gone.txt"]}))
    (tmp_path / "latin.txt").write_bytes(b"b\xfccher\n")
    with pytest.raises(InputError, match="latin"):
        urls.terms(recipe.model_copy(update={"words": [f"file:{tmp_path}/latin.txt"]}))


@given(st.text(max_size=100))
def test_hosts_never_fail(url: str) -> None:
    urls.host_of(url)


def test_language() -> None:
    sentence = "This is an ordinary English sentence about a dog and a cat."
    assert language.detect(sentence, ["en"])[:2] == ("en", "en")
    assert language.detect(sentence, ["en"])[2] > 0.9
    german = "<p>" + "Das ist ein ganz gewöhnlicher deutscher Satz über Hund und Katze. " * 5 + "</p>"
    assert language.gate(german, None, ["en"]) < 0.1
    assert language.gate(german, {"languages": [{"code": "en", "text-covered": 0.7}]}, ["en"]) == 0.7
    assert language.gate("<p>kurz</p>", None, ["en"]) == 1.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Write to maria.lopez@mail-server.org today.", "Write to <EMAIL> today."),
        ("The address 81.94.20.17 answered.", "The address <IP> answered."),
        ("His social security number is 536-22-4821 on file.", "His social security number is <US_SSN> on file."),
        ("Paid by credit card 4532015112830366 last week.", "Paid by credit card <CREDIT_CARD> last week."),
        ("Call our phone (212) 555-0123 now.", "Call our phone <PHONE> now."),
        ("Transfer to DE89370400440532013000 in time.", "Transfer to <IBAN> in time."),
    ],
)
def test_personal_data_is_replaced(text: str, expected: str) -> None:
    assert pii.redact(text, KINDS)[0] == expected


@pytest.mark.parametrize(
    "text",
    [
        "This was fixed in version 3.2.1.4 of the program.",
        "The advisory concerns OpenSSL 1.0.2.11 and later releases.",
        "The book has the ISBN 978-0-596-00797-8 and is still in print.",
        "The release was published on 2024-11-05 at 10:30 in the morning.",
        "Your order number 2024-000-1187-33 will be shipped soon.",
        "Use the private address 192.168.0.1 or 127.0.0.1 for this.",
        "No digits here, and no at sign.",
    ],
)
def test_decoys_stay(text: str) -> None:
    assert pii.redact(text, KINDS) == (text, [])


@given(st.text(max_size=300))
def test_redaction_never_fails_and_leaves_the_rest(text: str) -> None:
    redacted, counts = pii.redact(text, KINDS)
    if not counts:
        assert redacted == text


def test_what_is_no_warc_says_so(tmp_path: Path) -> None:
    from collections import Counter

    path = tmp_path / "x.warc.gz"
    path.write_bytes(b"<html>this is no archive</html>" * 10)
    with path.open("rb") as stream, pytest.raises(warc.NotWarc):
        list(warc.captures(stream, 1000, Counter()))


@pytest.mark.parametrize("mode", ["precision", "default", "fast", "resiliparse"])
def test_every_extractor_keeps_the_text_and_leaves_the_frame(mode: extraction.Mode) -> None:
    body = "".join(f"<p>The boats lay close to the wall, and number {n} was the last of them.</p>" for n in range(20))
    frame = "<nav><ul><li><a href='/'>Home</a></li><li><a href='/x'>Shop</a></li></ul></nav>"
    html = f"<html><head><title>Pier</title></head><body>{frame}<main><article>{body}</article></main></body></html>"
    found = extraction.extract(html, "http://x.test/", mode)
    assert found.title == "Pier" and found.text is not None
    assert "number 19 was the last" in found.text and "Shop" not in found.text and "<" not in found.text
