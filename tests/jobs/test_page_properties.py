"""The functions on one page: charset, URLs, words, quality, language, extraction."""

from __future__ import annotations

import inspect
import io
import math
import re
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path
from time import perf_counter, process_time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs import extract
from jobs.archive import warc
from jobs.archive.response import Capture
from jobs.page import charset, extraction, guard, language, quality, urls
from jobs.page import words as word_split
from jobs.page.words import words
from pipeline.errors import InputError
from pipeline.recipe import load
from pipeline.storage import Storage

DEMO = Path(__file__).parents[2] / "recipes" / "demo.yaml"
# CPU seconds, where `extract` guards itself
LIMIT = (10.0,) if "seconds" in inspect.signature(extraction.extract).parameters else ()
PROSE = (
    "The harbour was quiet that morning, and the boats lay close to the wall. Nobody spoke of the storm. "
    "We walked along the pier with our coats buttoned, and we counted the gulls that sat upon the rails. "
    "Later the baker opened his shop, and the smell of bread came over the square to us."
)


@given(st.binary(max_size=3000), st.text(max_size=60))
def test_any_bytes_under_any_plain_header_give_text(body: bytes, header: str) -> None:
    text, codec = charset.decode(body, header.replace("charset", ""))
    text.encode("utf-8", "surrogatepass")
    assert codec


@given(st.text(max_size=500))
def test_utf8_is_read_back(text: str) -> None:
    assert charset.decode(text.encode(), "text/html; charset=utf-8")[0] == text.removeprefix("\ufeff")


@pytest.mark.parametrize(
    ("label", "codec"),
    [
        ("ISO-8859-1", "cp1252"),
        ("us-ascii", "cp1252"),
        ("gb2312", "gb18030"),
        ("GBK", "gb18030"),
        ("Shift_JIS", "cp932"),
        ("euc-kr", "cp949"),
        ("iso-8859-9", "cp1254"),
        (" UTF8 ", "utf-8"),
        ("nonsense", None),
        ("hex", None),
    ],
)
def test_labels_are_read_as_browsers_read_them(label: str, codec: str | None) -> None:
    assert charset.codec(label) == codec


def test_a_bom_wins_over_the_header_and_the_header_over_meta() -> None:
    meta = b'<meta charset="windows-1251">'
    assert charset.decode(b"\xef\xbb\xbf" + meta, "text/html; charset=latin1")[1] == "utf-8"
    assert charset.decode(meta + b"\xe9", "text/html; charset=latin1") == (meta.decode() + "é", "cp1252")
    assert charset.decode(meta + b"\xe9", "text/html")[1] == "cp1251"
    assert charset.decode(b" " * 1024 + meta + b"\xe9 cafe", "text/html")[1] == "cp1252"  # beyond the prescan
    assert charset.decode(b'<meta charset="utf-16">\xc3\xa9', "")[0].endswith("é")


def test_a_host_is_folded_without_port_and_in_punycode() -> None:
    assert urls.host_of("HTTPS://User@WWW.Bücher.Example.:8080/x") == "www.xn--bcher-kva.example"
    assert urls.host_of("http://[::1") == ""


STOP_WORDS = load(DEMO).extract.languages["en"]
C4_LINES = load(DEMO).extract.c4_lines
TERMS = {"words": [], "soft_words": ["a", "b"], "soft_least": 2, "sub_words": ["xyz"], "allow": []}


@given(st.text(max_size=200))
def test_no_url_breaks_the_block_list(url: str) -> None:
    blocked = urls.BlockList(urls.hashed(["bad.example"]), TERMS | {"words": ["casino"]})
    assert blocked.reason(url, urls.host_of(url)) in (None, "blocked_domain", "blocked_url", "blocked_word")


@given(st.lists(st.from_regex(r"[a-z]{1,8}\.[a-z]{2,4}", fullmatch=True), max_size=20), st.data())
def test_a_domain_blocks_itself_and_all_below_it(names: list[str], data: st.DataObject) -> None:
    blocked = urls.BlockList(urls.hashed(names), TERMS)
    probe = data.draw(st.sampled_from([*names, "other.test"]))
    host = data.draw(st.sampled_from(["", "www.", "a.b."])) + probe
    assert (blocked.reason(f"http://{host}/", host) == "blocked_domain") == (probe in names)


def test_neighbours_of_a_blocked_domain_stay() -> None:
    blocked = urls.BlockList(urls.hashed(["Bad.Example"]), TERMS | {"words": ["casino"]})
    for host in ("notbad.example", "bad.example.org", "example", ""):
        assert blocked.reason(f"http://{host}/", host) is None
    assert blocked.reason("http://x.test/CASINO-night", "x.test") == "blocked_word"
    assert blocked.reason("http://x.test/casinova", "x.test") is None


def test_the_table_serves_from_a_mapped_file(tmp_path: Path) -> None:
    np.save(tmp_path / "t.npy", urls.hashed(["bad.example"]))
    blocked = urls.BlockList(np.load(tmp_path / "t.npy", mmap_mode="r"), TERMS)
    assert blocked.reason("", "bad.example") == "blocked_domain"


def test_a_folder_in_the_layout_of_ut1_is_read(tmp_path: Path) -> None:
    for category, name in (("adult", "a.test"), ("warez", "w.test")):
        (tmp_path / category).mkdir()
        (tmp_path / category / "domains").write_text(name + "\n")
    assert list(urls.listed(str(tmp_path), [])) == ["a.test", "w.test"]
    assert list(urls.listed(str(tmp_path), ["warez"])) == ["w.test"]
    with pytest.raises(InputError, match="nothere"):
        list(urls.listed(str(tmp_path), ["nothere"]))
    assert urls.hashed(["b.x", "a.x", "a.x"]).tolist() == urls.hashed(["a.x", "b.x"]).tolist()
    before = urls.identity(str(tmp_path), [])
    assert before == urls.identity(str(tmp_path), []) != urls.identity(str(tmp_path), ["warez"])
    (tmp_path / "warez" / "urls").write_text("c.test/x\n")
    assert urls.identity(str(tmp_path), []) != before


def test_a_list_that_is_not_utf_8_is_read(tmp_path: Path) -> None:
    (tmp_path / "adult").mkdir()
    for file in ("domains", "urls"):
        (tmp_path / "adult" / file).write_bytes(b"b\xfccher.test/x\nlast.test\n")
    assert list(urls.listed(str(tmp_path), [])) == ["b\ufffdcher.test/x", "last.test"] * 2
    blocked = urls.BlockList(urls.hashed(urls.listed(str(tmp_path), [])), TERMS)
    assert blocked.reason("http://last.test/", "last.test") == "blocked_domain"


# Nothing of the pattern reaches beyond a space, so that a text is split in pieces.
@settings(max_examples=500)
@given(
    st.lists(st.sampled_from(["don", "n't", "t", "'", "7", "-", ".", "http://", "é", "日", "@", " ", "\n", "\x85"])),
    st.text(),
)
def test_a_word_ends_at_a_space(parts: list[str], any_text: str) -> None:
    for text in ("".join(parts), any_text):
        assert words(text) == word_split._WORD.findall(text)


def test_words_are_split_as_spacy_splits_english() -> None:
    assert words("Don't pay 3.14, e-mail me!") == ["Do", "n't", "pay", "3.14", ",", "e", "-", "mail", "me", "!"]
    assert words("It's COVID-19 in the U.S.A; 7-14 days") == [
        "It", "'s", "COVID-19", "in", "the", "U.S.A", ";", "7", "-", "14", "days"
    ]  # fmt: skip


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


_BEFORE = re.compile(  # the split of English, of which the signatures of earlier corpora are made
    r"https?://\S+|[^\W\d_]+?(?=n['’]t\b)|n['’]t\b|['’](?:s|ll|re|ve|d|m)\b"
    r"|[^\W_]+(?:(?:(?<=\d)[.,:/]+(?=\d)|(?<=[^\W\d_])[.&-](?=\d)|(?<=[^\W\d_])[.&](?=[^\W\d_])|_+"
    r"|(?!['’](?:s|ll|re|ve|d|m)\b)['’])[^\W_]+)*"
    r"|\.{2,}|-{2,}|@\w+|_|[^\w\s]",
    re.IGNORECASE,
)
_EUROPEAN = st.characters(max_codepoint=0x058F) | st.sampled_from("don't It’S N'T HTTPS://  ..--_@&")


@settings(deadline=None)
@given(st.text(_EUROPEAN, max_size=200))
def test_other_scripts_do_not_change_how_european_ones_are_split(text: str) -> None:
    assert words(text) == _BEFORE.findall(text)


@settings(deadline=None)
@given(st.one_of(st.text(max_size=1500), st.text("ab.!?\n -#{…•", max_size=1500)))
def test_scores_of_any_text_are_finite_and_fractions_fractions(text: str) -> None:
    found = quality.scores(text, words(text), STOP_WORDS, C4_LINES)
    assert set(found) == {*quality.INTEGERS, *quality.FRACTIONS, *quality.FLAGS}
    for name in quality.FRACTIONS:
        assert math.isfinite(found[name]) and found[name] >= 0
        if "ratio" not in name and name != "mean_word_length":
            assert found[name] <= 1
    quality.decide(found | {"language": "en", "language_score": 1.0}, load(DEMO).filter)


def test_prose_passes_and_each_rule_names_what_it_drops() -> None:
    recipe = load(DEMO).filter

    def decided(text: str, english: float = 0.99) -> str | None:
        found = quality.scores(text, words(text), STOP_WORDS, C4_LINES)
        return quality.decide(found | {"language": "en", "language_score": english}, recipe)

    assert decided(PROSE) is None
    assert decided(PROSE, english=0.64) == "other_language"
    assert decided("Too short.") == "gopher_too_short"
    assert decided("\n".join([PROSE] * 5)) == "gopher_duplicate_lines"
    assert decided("\n".join(f"- {line}" for line in PROSE.split(". "))) == "gopher_bullets"
    assert decided(PROSE + " lorem ipsum dolor.") == "c4_lorem_ipsum"
    assert decided(" ".join(f"{i}" for i in range(200))) == "gopher_short_words"
    assert "gram" in str(decided(PROSE + " I say it all again now" * 20))


def test_counts_of_a_small_text_are_those_by_hand() -> None:
    text = "one two six. Ten.\none two six. Ten.\n\nx"
    found = quality.scores(text, words(text), STOP_WORDS, C4_LINES)
    assert (found["words"], found["sentences"], found["stop_words"]) == (9, 4, 0)
    assert found["duplicate_lines"] == pytest.approx(1 / 3)
    assert found["duplicate_line_chars"] == pytest.approx(17 / 38)
    # C4 drops the line of one word, and FineWeb's rules read what is left.
    assert found["c4_duplicate_line_chars"] == pytest.approx(17 / 34)
    assert found["line_punctuation"] == 1
    assert found["newline_word_ratio"] == pytest.approx(1 / 12)


@pytest.mark.parametrize(
    ("rule", "value", "line"),
    [
        ("min_words", 1, "Read on."),
        ("max_word_chars", 2000, f"See the {'x' * 1500} here."),
        ("remove_citations", False, "He was there[1] in May.[2]"),
        ("drop_javascript", False, "Turn on Javascript for this."),
        ("drop_policies", False, "Read our privacy policy first."),
        ("require_punctuation", True, "Of no mark at its end"),
        ("require_punctuation", True, "Of dots at its end..."),
    ],
)
def test_each_rule_on_lines_of_c4_can_be_switched(rule: str, value: object, line: str) -> None:
    """A line that a rule takes out or changes is one for the scores where the rule is off."""
    text = f"{line}\nA line that always counts."
    on, off = (
        quality.scores(text, words(text), STOP_WORDS, C4_LINES.model_copy(update=to)) for to in ({}, {rule: value})
    )
    differs = {name for name in on if on[name] != off[name]}
    assert differs and differs <= {
        "sentences", "line_punctuation", "newline_word_ratio", "c4_duplicate_line_chars",
        *(f"short_lines_{n}" for n in quality.SHORT_LINE_CHARS),
    }  # fmt: skip


def test_a_language_has_its_own_limits_and_the_others_those_of_all() -> None:
    found = quality.scores(PROSE, words(PROSE), STOP_WORDS, C4_LINES) | {"language_score": 0.99}
    given = {"filter.languages": {"en": 0.65, "de": 0.65}, "extract.languages": {"en": STOP_WORDS, "de": []}}
    recipe = load(
        DEMO, given | {"filter.by_language": {"de": {"gopher": {"min_stop_words": 9, "min_words": 0}}}}
    ).filter
    assert quality.decide(found | {"language": "en"}, recipe) is None
    assert quality.decide(found | {"language": "de"}, recipe) == "gopher_stop_words"
    short = {"words": 3}
    assert quality.decide(found | {"language": "en"} | short, recipe) == "gopher_too_short"
    assert quality.decide(found | {"language": "de"} | short, recipe) == "gopher_stop_words"
    assert quality.decide(found | {"language": "fr"}, recipe) == "other_language"


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


@settings(deadline=None, max_examples=50)
@given(st.text(max_size=300))
def test_no_text_breaks_the_language_model(text: str) -> None:
    assert 0 <= language.detect(text.encode("utf-8", "replace").decode(), ["en", "fr"])[2] <= 1


def test_the_text_of_a_page_does_not_depend_on_the_pages_before_it() -> None:
    html = f"<html><body><article><p>{PROSE}</p><p>{PROSE[::2]}</p></article></body></html>"
    first, second = (extraction.extract(html, "http://x.test/", "precision", *LIMIT) for _ in range(2))
    assert first == second and first.text and PROSE[:60] in first.text


def top_ngram(found: list[str], n: int) -> int:
    """Plainly: characters of the longest of the most frequent n-grams, times its count; 0 where none repeats."""
    counts = Counter(zip(*(found[i:] for i in range(n)), strict=False))
    most = max(counts.values(), default=1)
    return 0 if most == 1 else max(sum(map(len, gram)) for gram, count in counts.items() if count == most) * most


def repeated_ngrams(found: list[str], n: int) -> int:
    """Plainly: characters of n-grams that were there before, from left to right without overlap."""
    seen: set[tuple[str, ...]] = set()
    chars = at = 0
    while at + n <= len(found):
        gram = tuple(found[at : at + n])
        chars += sum(map(len, gram)) if gram in seen else 0
        at += n if gram in seen else 1
        seen.add(gram)
    return chars


@settings(deadline=None)
@given(st.lists(st.sampled_from(["a", "bb", "c", ".", "ddd"]), max_size=80).map(" ".join), st.integers(1, 3))
def test_repetitions_are_those_of_the_plain_definition(text: str, times: int) -> None:
    text = " ".join([text] * times)
    found, row = words(text), quality.scores(text, words(text), ["the"], C4_LINES)
    for n in quality.TOP_NGRAMS:
        assert row[f"top_{n}gram_chars"] == min(1.0, top_ngram(found, n) / max(1, len(text)))
    for n in quality.DUPLICATE_NGRAMS:
        assert row[f"duplicate_{n}gram_chars"] == min(1.0, repeated_ngrams(found, n) / max(1, len(text)))


LINES = ["Hello there.", "We use cookies here, friend.", "As seen[3] in town[edit]", "no", "a b c d", "[1] b c", ""]


@given(st.lists(st.sampled_from(LINES) | st.text(max_size=12), max_size=12).map("\n".join))
def test_words_are_counted_of_the_lines_that_are_left(text: str) -> None:
    unscripted = [line for line in map(str.strip, text.splitlines()) if quality._long(line, C4_LINES)]
    left = [quality._c4_line(line, C4_LINES) for line in unscripted if "javascript" not in line.lower()]
    left = [line for line in left if line]
    row = quality.scores(text, words(text), ["the"], C4_LINES)
    assert row["newline_word_ratio"] == min(1.0, max(0, len(left) - 1) / max(1, sum(len(words(line)) for line in left)))


def test_a_worker_maps_the_block_list_and_holds_no_copy(tmp_path: Path) -> None:
    """Five million domains, 40 MB: open in 50 ms; lookups in another process cost it less than 20 MB of its own."""
    random = np.random.default_rng(1)
    np.save(tmp_path / "list.npy", np.sort(random.integers(0, 2**63, 5_000_000, dtype=np.uint64)))
    script = f"""
import re, pathlib
from jobs.extract import opened
from jobs.page import urls
from pipeline.recipe import load
from pipeline.storage import Storage
def own():
    return int(re.search(r"Anonymous: +(\\d+) kB", pathlib.Path("/proc/self/smaps_rollup").read_text())[1])
terms = urls.terms(load({str(DEMO)!r}).extract.block_list)
before = own()
blocked = opened(Storage({str(tmp_path)!r}), "list.npy", terms)
for n in range(20_000):
    blocked.reason(f"http://a{{n}}.b{{n}}.test/x", f"a{{n}}.b{{n}}.test")
print(own() - before)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=DEMO.parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 20_000
    storage, terms, seconds = Storage(tmp_path), urls.terms(load(DEMO).extract.block_list), []
    for _ in range(5):
        before = perf_counter()
        extract.opened(storage, "list.npy", terms)
        seconds.append(perf_counter() - before)
    assert min(seconds) < 0.05


TAGS = """<html lang="en">|<head>|<title>The pier</title>|<meta charset="utf-8">|<meta http-equiv=refresh content="0">
</head>|<body onload='x()'>|<article>|<div class="content main">|<p>|</p>|<a href="/x?a=1&amp;b=2">|</a>|<br/>|<li>|<ul>
<table>|<tr><td colspan=9>|</table>|<script>if (a < b) { c() }</script>|<style>p { x: "</p>" }</style>|<!-- no|-->
<![CDATA[x]]>|<!DOCTYPE html [<!ENTITY a "&a;">]>|&nbsp;|&#0;|&#x110000;|&#55296;|<svg><math>|<template>|<textarea>
<select><option>|<img src=x alt="Gulls">
<h1>|</h1>|<form>|<iframe srcdoc="<p>">|</article>|</body>|</html>|<b><i></b>"""
PIECES = [*TAGS.replace("\n", "|").split("|"), *PROSE.split(". ")]


def record(kind: str, url: str, block: bytes) -> bytes:
    header = f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Date: 2024-01-01T00:00:00Z\r\nWARC-Target-URI: {url}\r\n"
    return f"{header}Content-Length: {len(block)}\r\n\r\n".encode() + block + b"\r\n\r\n"


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A plain archive of three pages, with some slices of it inserted, deleted, replaced or doubled."""
    parts: list[bytes] = []
    for n in range(3):
        html = "".join(draw(st.lists(st.sampled_from(PIECES), max_size=40)))
        encoding = draw(st.sampled_from(["", "Content-Encoding: gzip\r\n", "Transfer-Encoding: chunked\r\n"]))
        head = f"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n{encoding}\r\n"
        url = f"http://x.test/{n}"
        parts.append(record("request", url, b"GET / HTTP/1.1\r\n\r\n"))
        parts.append(record("response", url, head.encode() + html.encode()))
        parts.append(record("metadata", url, b'languages-cld2: {"languages": [{"code": "en", "text-covered": 1.0}]}'))
    data = b"".join(parts)
    # Headers are short beside bodies, so most edits are made where one begins.
    begins = [at for mark in (b"WARC/1.0", b"HTTP/1.1", b"Content-", b"\r\n\r\n", b"<") for at in places(data, mark)]
    for _ in range(draw(st.integers(1, 6))):
        at = min(len(data), max(0, draw(st.sampled_from(begins)) + draw(st.integers(-4, 40))))
        size, other = draw(st.integers(0, 60)), draw(st.integers(0, len(data)))
        known = st.sampled_from([b"\r\n", b"\0", b"9", b"-", b"WARC/1.0\r\n", b"<", b'"', b">"])
        new = draw(st.binary(max_size=6) | known)
        edit = draw(st.sampled_from(["insert", "delete", "replace", "double", "copy"]))
        if edit == "insert":
            data = data[:at] + new + data[at:]
        elif edit == "delete":
            data = data[:at] + data[at + size :]
        elif edit == "replace":
            data = data[:at] + new + data[at + len(new) :]
        elif edit == "double":
            data = data[: at + size] + data[at:]
        else:
            data = data[:at] + data[other : other + size] + data[at:]
    return data


def places(data: bytes, mark: bytes) -> list[int]:
    return [match.start() for match in re.finditer(re.escape(mark), data)]


@settings(deadline=None, max_examples=200)
@given(mutated())
def test_any_edits_of_an_archive_leave_rows_and_no_defect(data: bytes) -> None:
    blocked, recipe = urls.BlockList(urls.hashed([]), TERMS), load(DEMO).extract
    lost: list[warc.Lost] = []
    found: list[Capture] = []
    before = process_time()
    with suppress(warc.NotWarc, warc.Truncated):
        found.extend(warc.captures(io.BytesIO(data), 1 << 20, None, lost))
    assert process_time() - before < 1
    for capture in found:
        row = extract.page(
            capture, blocked, recipe, lambda page: guard.timed(lambda: extract.read_page(recipe, None, page), 10)
        )
        assert row.get("reason") not in ("extraction_error", "page_timeout"), row["detail"]
        assert (row.get("text") is None) == (row.get("reason") is not None)
    offsets = [capture.offset for capture in found]
    assert offsets == sorted(set(offsets)) and all(data[at:].lstrip().startswith(b"WARC/") for at in offsets)
    gaps = [(one.offset, one.offset + one.length) for one in lost]
    assert all(0 <= begin < end <= len(data) for begin, end in gaps) and gaps == sorted(gaps)
    assert not [at for at in offsets for begin, end in gaps if begin <= at < end]
