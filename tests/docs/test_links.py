"""What Markdown points to is there: files, folders, headings, and the files that it names as code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.docs.commands import ROOT, files, name

MARKDOWN = files(".md")
TREE = {name(path) for path in ROOT.rglob("*") if not path.relative_to(ROOT).parts[0].startswith(".")}
TREE |= {".ci/run", *(name(path) for path in ROOT.glob(".github/workflows/*.yml"))}
# An ending by which a name within backticks is a file of ours, or a folder.
FILE = re.compile(r"^[\w.][\w./*-]*(\.(py|md|yaml|yml|sh|svg|toml|lock|j2|tpl|conf|jsonl|warc\.gz)|/)$")
# Named in the text, and not ours or made by a run.
ELSEWHERE = {
    "_work/": "of a root",
    "metrics.jsonl": "of an artifact",
    "results.json": "of an artifact",
    "runs/": "of a root",
    "tokenizer.json": "of a model",
}


def text_of(file: Path) -> str:
    """Markdown without its blocks of code."""
    text = re.sub(r"^ *```.*?^ *```", "", file.read_text(), flags=re.M | re.S)
    return re.sub(r"^    .*$", "", text, flags=re.M)


def headings(file: Path) -> set[str]:
    """Anchors of a page."""
    return {anchor(heading) for heading in re.findall(r"^#+ +(.*)$", text_of(file), re.M)}


def anchor(heading: str) -> str:
    """As GitHub makes one: lower case, without punctuation, blanks to hyphens."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def links(file: Path) -> Iterator[str]:
    """Targets of links and pictures, but for those on other servers."""
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(file)):
        if not re.match(r"[a-z]+:", target):
            yield target


def missing(file: Path, target: str) -> str | None:
    """What is wrong with a link, if anything."""
    path, _, anchor = unquote(target).partition("#")
    place = (file.parent / path).resolve() if path else file
    if not place.is_relative_to(ROOT) or not place.exists():
        return f"{target} does not exist"
    if anchor and anchor not in headings(place):
        return f"{target}: no such heading"
    return None


def is_file(text: str, file: Path) -> bool:
    """Whether a name stands for something in the project: the whole path, or its end."""
    plain = text.rstrip("/")
    if "*" in plain:
        return any(ROOT.glob(plain)) or any(file.parent.glob(plain))
    return any(path == plain or path.endswith(f"/{plain}") for path in TREE)


@pytest.mark.parametrize("file", MARKDOWN, ids=name)
def test_links_lead_somewhere(file: Path) -> None:
    wrong = [told for target in links(file) if (told := missing(file, target))]
    assert not wrong


@pytest.mark.parametrize("file", MARKDOWN, ids=name)
def test_files_that_are_named_are_there(file: Path) -> None:
    ours = re.sub(r"\[[^\]]*\]\([a-z]+:[^)]*\)", "", text_of(file))  # a link to a server may name its file
    named = {text for text in re.findall(r"`([^`\n]+)`", ours) if FILE.match(text) and text not in ELSEWHERE}
    assert [text for text in sorted(named) if not is_file(text, file)] == []


def test_every_page_of_the_documentation_is_reached_from_the_readme() -> None:
    seen, look = set[Path](), [ROOT / "README.md"]
    while look:
        file = look.pop()
        seen.add(file)
        targets = [(file.parent / target.partition("#")[0]).resolve() for target in links(file)]
        look += [target for target in targets if target.suffix == ".md" and target not in seen]
    assert {name(file) for file in MARKDOWN if name(file).startswith("docs/")} <= {name(file) for file in seen}


@pytest.mark.parametrize("page", ["bench/RESULTS.md", "docs/decisions.md"])
def test_the_index_of_a_page_names_all_of_its_sections(page: str) -> None:
    sections = set(re.findall(r"^## +(.*)$", text_of(ROOT / page), re.M))
    anchors = {anchor(section) for section in sections}
    assert anchors == {target.removeprefix("#") for target in links(ROOT / page) if target.startswith("#")}


def test_a_link_that_leads_nowhere_is_found(tmp_path: Path) -> None:
    readme = ROOT / "README.md"
    assert missing(readme, "docs/nothing.md") and missing(readme, "docs/scale.md#no-such-heading")
    assert missing(readme, "../elsewhere") and missing(readme, "#two-commands") is None
    assert missing(readme, "docs/scale.md#where-the-cost-arises-and-which-settings-decide-it") is None
    assert not is_file("jobs/nothing.py", readme) and is_file("jobs/extract.py", readme) and is_file("recipes/", readme)
    page = tmp_path / "page.md"
    page.write_text("[a](b.md) ![c](d.svg)\n\n    [code](e.md)\n\n```\n[f](g.md)\n```\n[h](https://x)\n")
    assert list(links(page)) == ["b.md", "d.svg"]
