"""Build the sample crawl from HTML documentation packages of Debian 12, in Common Crawl's record layout.

    python tests/data/build_sample.py --work <folder for the packages>    # needs the Internet

Needs `apt-get` and `dpkg` (Debian) and, beside the project's own environment, `pip install pycld2` for the
`languages-cld2` records. The same packages give the same bytes. Writes `CC-SAMPLE-0000N.warc.gz` and `truth.jsonl`
to `tests/data/sample/`; the licences of the texts stand in `LICENSES.md` there.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import random
import re
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pycld2
import trafilatura
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

SEED = 20250125
FILES = 5
DATE = "2025-01-25T12:00:00Z"
OUT = Path(__file__).parent / "sample"

_GUIDE, _APACHE = "usr/share/doc/installation-guide-amd64", "usr/share/doc/apache2-doc/manual"
# package, folder below it, pattern of the files, host, language, most pages. English first: it fills the budget.
SOURCES = (
    ("debian-handbook", "usr/share/doc/debian-handbook/html/en-US", "*.html", "handbook.example", "en", 90),
    ("installation-guide-amd64", f"{_GUIDE}/en", "*.html", "install.example", "en", 40),
    ("harden-doc", "usr/share/doc/harden-doc/html/en-US", "*.html", "securing.example", "en", 40),
    ("debian-history", "usr/share/doc/debian-history/docs", "*.en.html", "history.example", "en", 5),
    ("developers-reference", "usr/share/developers-reference", "*.html", "developers.example", "en", 10),
    ("debian-policy", "usr/share/doc/debian-policy/policy.html", "*.html", "policy.example", "en", 20),
    ("blends-doc", "usr/share/doc/blends-doc/html", "*.html", "blends.example", "en", 14),
    ("debian-faq", "usr/share/doc/debian/FAQ", "*.en.html", "questions.example", "en", 14),
    ("freedombox-doc-en", "usr/share/freedombox/manual/en", "*.html", "homeserver.example", "en", 40),
    ("apache2-doc", f"{_APACHE}/en", "**/*.html", "httpd.example", "en", 30),
    ("exim4-doc-html", "usr/share/doc/exim4-doc-html/spec_html", "*.html", "mail.example", "en", 20),
    ("gimp-help-en", "usr/share/gimp/2.0/help/en", "*.html", "painting.example", "en", 80),
    ("gnucash-docs", "usr/share/doc/gnucash-docs", "gnucash-*-en/*.html", "accounts.example", "en", 70),
    ("png-definitive-guide", "usr/share/doc/png-definitive-guide/html", "*.html", "pictures.example", "en", 12),
    ("sqlite3-doc", "usr/share/doc/sqlite3", "*.html", "sqlite.example", "en", 60),
    ("postgresql-doc-15", "usr/share/doc/postgresql-doc-15/html", "*.html", "postgres.example", "en", 60),
    ("installation-guide-amd64", f"{_GUIDE}/de", "*.html", "handbuch.example", "de", 65),
    ("installation-guide-amd64", f"{_GUIDE}/fr", "*.html", "cahier.example", "fr", 65),
    ("installation-guide-amd64", f"{_GUIDE}/es", "*.html", "manual.example", "es", 65),
    ("installation-guide-amd64", f"{_GUIDE}/ru", "*.html", "kniga.example", "ru", 45),
    ("installation-guide-amd64", f"{_GUIDE}/ja", "*.html", "tebiki.example", "ja", 45),
    ("installation-guide-amd64", f"{_GUIDE}/zh_CN", "*.html", "shouce.example", "zh", 45),
    ("installation-guide-amd64", f"{_GUIDE}/it", "*.html", "manuale.example", "it", 60),
)
ENGLISH_CHARS = (1_500, 40_000)  # an English page is taken if its main text has so many characters
OTHER_HTML_BYTES = 9_600  # pages in other languages are kept small: they are there to be dropped
# Pages in these languages are sent in the charset people once used for them, declared in one place only.
ISO_639_3 = {
    "en": "eng", "de": "deu", "fr": "fra", "es": "spa", "it": "ita", "ru": "rus", "ja": "jpn", "zh": "zho", "la": "lat",
}  # fmt: skip
CHARSETS = {"fr": "iso-8859-1", "ru": "windows-1251", "ja": "euc-jp", "zh": "gb18030"}

# kind, sentence, strings in turn (`{}` makes them differ)
PII = (
    ("EMAIL", "You can reach the author of this chapter at {}.", ("m.lopez{}@mail-server.org", "j.smith+{}@acme.com")),
    ("IP", "The machine answered from the address {} during the test.", ("81.94.{}.17", "203.14.{}.201")),
    ("US_SSN", "His social security number is {} according to the form.", ("536-22-48{}", "212-09-91{}")),
    (
        "CREDIT_CARD",
        "The order was paid with the credit card {} last week.",
        ("4532015112830366", "5425233430109903", "4916338506082832", "374245455400126", "6011000991300009"),
    ),
    ("PHONE", "For questions call our phone number {} during office hours.", ("(212) 555-01{}", "+1 415-555-26{}")),
    (
        "IBAN",
        "Please transfer the fee to the account {} in time.",
        ("DE89370400440532013000", "GB82WEST12345698765432", "FR1420041010050500013M02606", "NL91ABNA0417164300"),
    ),
)
DECOYS = (
    "This was fixed in version 3.2.1.4 of the program.",
    "The advisory concerns OpenSSL 1.0.2.11 and later releases.",
    "The book has the ISBN 978-0-596-00797-8 and is still in print.",
    "The release was published on 2024-11-05 at 10:30 in the morning.",
    "Your order number 2024-000-1187-33 will be shipped soon.",
)
BLOCKED = {
    "gambling": ("luckyreel.example", "bigjackpot.example", "roulette-room.example"),
    "adult": ("nightvideos.example", "hotpics.example"),
    "warez": ("crackdepot.example", "freekeygens.example"),
}


@dataclass
class Capture:
    """One response to be written, with what is known of it."""

    url: str
    body: bytes
    status: str = "200 OK"
    mime: str = "text/html"
    charset: str | None = "utf-8"  # as the HTTP header says; None: it says none
    encoding: str = "utf-8"  # as the bytes are
    truth: dict[str, Any] = field(default_factory=dict)


def unpack(package: str, work: Path) -> Path:
    """Download and unpack a package of the system's release, once."""
    folder = work / package
    if not folder.exists():
        (work / "debs").mkdir(parents=True, exist_ok=True)
        found = sorted((work / "debs").glob(f"{package}_*.deb"))
        if not found:
            subprocess.run(["apt-get", "download", package], cwd=work / "debs", check=True)
            found = sorted((work / "debs").glob(f"{package}_*.deb"))
        subprocess.run(["dpkg", "-x", found[-1], folder], check=True)
    return folder


_KEPT = "href|class|src|alt|lang|xml:lang|content|http-equiv|charset"
_ATTRIBUTES = re.compile(rf"""\s(?!{_KEPT})[\w:-]+\s*=\s*("[^"]*"|'[^']*')""")


def lean(html: str) -> str:
    """The page without what makes it heavy and says nothing, and with its white space folded outside `<pre>`."""
    html = re.sub(r"(?is)<(script|style)\b.*?</\1\s*>|<!--.*?-->|<link\b[^>]*>", "", html)
    html = re.sub(r"(?i)<meta\b(?![^>]*charset)[^>]*>", "", html)
    html = re.sub(r"<(?!\?)[a-zA-Z][^<>]*>", lambda tag: _ATTRIBUTES.sub("", tag[0]), html)
    parts = re.split(r"(?is)(<pre\b.*?</pre\s*>)", html)
    return "".join(part if i % 2 else re.sub(r"\s+", " ", part) for i, part in enumerate(parts))


def decoded(body: bytes) -> str:
    """The page's text: old pages are in windows-1252. A page that says so in itself says utf-8 from now on."""
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError:
        html = body.decode("cp1252", errors="replace")
        return re.sub(r"(?i)charset=(\"?)(iso-8859-1|windows-1252)", r"charset=\1utf-8", html)


def main_text(html: str) -> str:
    """What the pipeline's extractor sees as the main text."""
    return trafilatura.extract(html, favor_precision=True, include_comments=False, deduplicate=False) or ""


def is_prose(text: str) -> bool:
    """True where most lines are sentences and most words have letters."""
    lines = [line for line in text.splitlines() if line.strip()]
    words = re.findall(r"\w+(?:[.'’_-]\w+)*|[^\w\s]", text)
    ended = sum(line.rstrip().endswith((".", "!", "?", '"', ":")) for line in lines)
    short = sum(len(line) <= 30 for line in lines)
    letters = sum(any(char.isalpha() for char in word) for word in words)
    return len(lines) > 2 and ended / len(lines) > 0.4 and short / len(lines) < 0.5 and letters / len(words) > 0.8


def mostly(language: str, html: str) -> bool:
    """True where cld2 finds the page to be in this language for the greater part: some pages are not translated."""
    _, _, found = pycld2.detect(html, isPlainText=False)
    return bool(found[0][1].startswith(language)) and found[0][2] >= 60


def pages(work: Path) -> Iterator[Capture]:
    """The pages of all sources; a host has its pages in order of a hash, so that a limit takes a fair sample."""
    for package, folder, pattern, host, language, limit in SOURCES:
        root = unpack(package, work) / folder
        files = filter(Path.is_file, root.glob(pattern))
        found = sorted(files, key=lambda path: hashlib.sha256(path.relative_to(root).as_posix().encode()).digest())
        taken = 0
        for path in found:
            if taken == limit:
                break
            html = lean(decoded(path.read_bytes()))
            if language == "en":
                text = main_text(html)
                if not ENGLISH_CHARS[0] <= len(text) <= ENGLISH_CHARS[1] or not is_prose(text):
                    continue
            elif len(html) > OTHER_HTML_BYTES:
                continue
            if not mostly(language, html):
                continue
            charset = CHARSETS.get(language, "utf-8")
            body = html.encode(charset, errors="xmlcharrefreplace")
            declared: str | None = charset
            if charset != "utf-8":
                body = re.sub(rb"(?i)(charset=\"?)utf-8", rb"\1" + charset.encode(), body)
                body = re.sub(rb"(?i)(<\?xml[^>]*encoding=\")utf-8", rb"\1" + charset.encode(), body)
                declared = charset if taken % 2 else None  # else it stands in the page only
                if declared:
                    body = re.sub(rb"(?i)<meta[^>]*charset=[^>]*>|<\?xml.*?\?>", b"", body)
            url = f"https://{host}/{path.relative_to(root).as_posix()}"
            known = {"language": language, "source": package}
            yield Capture(url, body, charset=declared, encoding=charset, truth=known)
            taken += 1


def edited(body: bytes, share: float, rng: random.Random) -> bytes:
    """The page with `share` of the words in its running text replaced by other words of it."""
    text = body.decode("utf-8")
    runs = [m.span(1) for m in re.finditer(r">([^<>]{60,})<", text)]
    words = [(a + m.start(), a + m.end()) for a, b in runs for m in re.finditer(r"(?<![&\w])[a-z]{3,}\b", text[a:b])]
    vocabulary = sorted({text[a:b] for a, b in words})
    for start, end in sorted(rng.sample(words, max(1, int(len(words) * share))), reverse=True):
        text = text[:start] + rng.choice(vocabulary) + text[end:]
    return text.encode("utf-8")


def with_sentence(body: bytes, sentence: str) -> bytes | None:
    """The page with the sentence at the end of its longest run of text; None where the extractor loses it."""
    text = body.decode("utf-8")
    runs = list(re.finditer(r">([^<>]{60,}\.)\s*<", text))
    if not runs:
        return None
    longest = max(runs, key=lambda match: len(match.group(1)))
    changed = text[: longest.end(1)] + " " + sentence + text[longest.end(1) :]
    return changed.encode("utf-8") if sentence in main_text(changed) else None


def planted(crawl: list[Capture], rng: random.Random) -> Iterator[Capture]:
    """Copies, blocked pages, personal data, decoys, broken pages, other types and other statuses."""
    rng.shuffle(english := [c for c in crawl if c.truth["language"] == "en"])
    supply = iter(english)
    yield from copies(supply, rng)
    yield from blocked(supply)
    plant_strings(supply)
    yield from broken_pages(english[0].body)
    yield from other_responses()


def copies(supply: Iterator[Capture], rng: random.Random) -> Iterator[Capture]:
    def copy(kind: str, origin: Capture, body: bytes) -> Capture:
        host = origin.url.replace("https://", f"https://mirror{rng.randrange(9)}.", 1)
        url = host.replace(".html", f"-{rng.randrange(10**6)}.html")
        return Capture(url, body, truth={**origin.truth, "planted": {"kind": kind, "original_url": origin.url}})

    for kind, number, share in (("exact_copy", 24, 0.0), ("near_copy_1pct", 20, 0.01), ("near_copy_5pct", 20, 0.05)):
        for _ in range(number):
            origin = next(c for c in supply if len(c.body) > 5000)
            yield copy(kind, origin, edited(origin.body, share, rng) if share else origin.body)


def blocked(supply: Iterator[Capture]) -> Iterator[Capture]:
    hosts = [(category, host) for category, names in BLOCKED.items() for host in names]
    variants = {4: "www.{}", 5: "m.{}", 7: "{}:8443", 8: "a.b.{}", 9: "old.{}", 10: "www2.{}"}
    for i in range(15):
        category, host = hosts[i % len(hosts)]
        host = variants.get(i, "{}").format(host)
        host = host.upper() if i == 6 else host
        origin = next(supply)
        plant = {"kind": "blocked_domain", "category": category}
        yield Capture(f"https://{host}/page-{i}.html", origin.body, truth={**origin.truth, "planted": plant})


def plant_strings(supply: Iterator[Capture]) -> None:
    for i in range(30):
        kind, sentence, forms = PII[i % len(PII)]
        string = forms[(i // len(PII)) % len(forms)].format(f"{20 + i}")
        origin, body = next((c, b) for c in supply if (b := with_sentence(c.body, sentence.format(string))))
        origin.body = body
        origin.truth["planted"] = {"kind": "pii", "pii": kind, "string": string}
    for i in range(10):
        sentence = DECOYS[i % len(DECOYS)]
        origin, body = next((c, b) for c in supply if (b := with_sentence(c.body, sentence)))
        origin.body = body
        origin.truth["planted"] = {"kind": "decoy", "string": sentence}


def broken_pages(some: bytes) -> Iterator[Capture]:
    broken = {
        "cut": some[: len(some) // 3],
        "wrong_charset": "<html><body><p>Größe und Änderung</p></body></html>".encode("iso-8859-1"),
        "empty": b"",
        "nul": some[:3000].replace(b" ", b"\0", 400),
        "nested": b"<html><body>" + b"<div>" * 20_000 + b"deep" + b"</div>" * 20_000,
        "no_html": b"just a line of text without any tag",
        "binary": hashlib.sha512(b"noise").digest() * 40,
        "unclosed": b"<html><body><p>An <b>unclosed <i>page <table><tr><td>" + b"word " * 300,
        "entities": b"<html><body><p>" + b"&#x1F600;&notanentity;&#99999999;" * 200,
        "frames": b'<html><frameset cols="20%,80%"><frame src="a.html"><frame src="b.html"></frameset></html>',
    }
    for name, body in broken.items():
        yield Capture(f"https://broken.example/{name}.html", body, truth={"planted": {"kind": "broken", "what": name}})


def other_responses() -> Iterator[Capture]:
    others = (
        ("style.css", "text/css", b"body { color: black; margin: 0 }\n" * 20),
        ("app.js", "application/javascript", b"function f(a) { return a + 1; }\n" * 20),
        ("data.json", "application/json", json.dumps({"items": list(range(50))}).encode()),
        ("dot.png", "image/png", b"\x89PNG\r\n\x1a\n" + bytes(60)),
        ("paper.pdf", "application/pdf", b"%PDF-1.4\n%%EOF\n"),
    )
    for i in range(15):
        name, mime, body = others[i % len(others)]
        url = f"https://files{i}.example/{name}"
        yield Capture(url, body, mime=mime, charset=None, truth={"planted": {"kind": "non_html"}})
    statuses = (
        "301 Moved Permanently", "302 Found", "304 Not Modified", "403 Forbidden", "404 Not Found", "410 Gone",
        "500 Internal Server Error", "503 Service Unavailable",
    )  # fmt: skip
    for i in range(20):
        status = statuses[i % len(statuses)]
        body = b"" if status.startswith("304") else f"<html><body><h1>{status}</h1></body></html>".encode()
        yield Capture(f"https://gone{i}.example/x", body, status=status, truth={"planted": {"kind": "non_200"}})


def cld2(capture: Capture) -> str | None:
    """The page's `languages-cld2` value as Common Crawl writes it; None where nothing was detected."""
    try:
        text = capture.body.decode(capture.encoding, "replace").replace("\0", " ")
        reliable, size, found = pycld2.detect(text, isPlainText=False)
    except pycld2.error:
        return None
    languages = [
        {
            "code": code,
            "code-iso-639-3": ISO_639_3.get(code, code),
            "text-covered": round(percent / 100, 2),
            "score": score,
            "name": name,
        }
        for name, code, percent, score in found
        if code != "un"
    ]
    value: dict[str, Any] = {"reliable": reliable, "text-bytes": size}
    if languages:
        value["languages"] = languages
    return json.dumps(value, separators=(",", ":"))


def write(captures: list[Capture], number: int) -> list[dict[str, Any]]:
    """Write one WARC file; returns the truth of its responses."""
    rng = random.Random(f"{SEED}-{number}")
    name = f"CC-SAMPLE-{number:05d}.warc.gz"
    truth = []
    with (OUT / name).open("wb") as stream:
        writer = WARCWriter(stream, gzip=True, warc_version="WARC/1.0")

        def record(
            kind: str, url: str | None, body: bytes, more: dict[str, str], http: StatusAndHeaders | None = None
        ) -> str:
            identity = f"<urn:uuid:{uuid.UUID(int=rng.getrandbits(128), version=4)}>"
            headers = {"WARC-Record-ID": identity, "WARC-Date": DATE, **more}
            made = writer.create_warc_record(
                url, kind, io.BytesIO(body), warc_headers_dict=headers, http_headers=http, length=len(body)
            )
            writer.write_record(made)
            return identity

        about = b"isPartOf: CC-SAMPLE\r\npublisher: crawl2chat\r\nformat: WARC File Format 1.0\r\n"
        info = record("warcinfo", None, about, {"WARC-Filename": name, "Content-Type": "application/warc-fields"})
        for capture in captures:
            host, _, path = capture.url.removeprefix("https://").partition("/")
            address = f"198.51.100.{int(hashlib.sha256(host.encode()).hexdigest(), 16) % 254 + 1}"
            common = {"WARC-Warcinfo-ID": info, "WARC-IP-Address": address}
            lines = [("Host", host), ("User-Agent", "CCBot/2.0")]
            asked = StatusAndHeaders(f"GET /{path} HTTP/1.1", lines, is_http_request=True)
            request = record("request", capture.url, b"", common, asked)
            kind = capture.mime + (f"; charset={capture.charset}" if capture.charset else "")
            headers = [("Content-Type", kind), ("Content-Length", str(len(capture.body)))]
            offset = stream.tell()
            payload = {"WARC-Identified-Payload-Type": capture.mime, "WARC-Concurrent-To": request}
            answer = StatusAndHeaders(capture.status, headers, protocol="HTTP/1.1")
            response = record("response", capture.url, capture.body, common | payload, answer)
            fields = f"fetchTimeMs: {rng.randrange(40, 900)}\r\n"
            if capture.status.startswith("200") and capture.mime == "text/html" and (value := cld2(capture)):
                fields += f"charset-detected: {capture.encoding.upper()}\r\nlanguages-cld2: {value}\r\n"
            meta = {"WARC-Warcinfo-ID": info, "WARC-Concurrent-To": response, "Content-Type": "application/warc-fields"}
            record("metadata", capture.url, fields.encode(), meta)
            status = int(capture.status[:3])
            place = {"url": capture.url, "file": name, "offset": offset, "status": status, "mime": capture.mime}
            truth.append(place | capture.truth)
    return truth


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the packages")
    work = parser.parse_args().work
    rng = random.Random(SEED)
    crawl = list(pages(work))
    crawl += list(planted(crawl, rng))
    rng.shuffle(crawl)
    OUT.mkdir(exist_ok=True)
    truth = [line for number in range(FILES) for line in write(crawl[number::FILES], number)]
    (OUT / "truth.jsonl").write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in truth))
    size = sum(path.stat().st_size for path in OUT.glob("*.warc.gz"))
    english = sum(line.get("language") == "en" for line in truth)
    print(f"{len(truth)} responses, {english} English, {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
