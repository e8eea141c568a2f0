"""What extraction changes of trafilatura costs less and finds the same."""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from pathlib import Path

import trafilatura.utils
import trafilatura.xpaths

from jobs.page import charset, extraction, warc

REPOSITORY = Path(__file__).parents[2]
SAMPLE = REPOSITORY / "tests/data/sample/CC-SAMPLE-00001.warc.gz"
SHARED = sorted((REPOSITORY.parent / "shared/data/crawl").rglob("*.warc.gz"))[:1]  # pages with more classes


def test_the_cheaper_expressions_find_the_same_elements() -> None:
    spec = importlib.util.spec_from_file_location("unchanged", trafilatura.xpaths.__file__)
    assert spec and spec.loader
    unchanged = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(unchanged)
    lists = {name: value for name, value in vars(unchanged).items() if isinstance(value, list)}
    changed = []
    for name, expressions in lists.items():
        used = [expression.path for expression in getattr(trafilatura.xpaths, name)]
        assert used == [extraction.cheaper(expression).path for expression in expressions]
        changed += [(one, extraction.cheaper(one)) for one in expressions if "re:test" in one.path]
    assert len(changed) > 15
    found = Counter[str]()
    captures: list[warc.Capture] = []
    for file in [SAMPLE, *SHARED]:
        with file.open("rb") as stream:
            captures += (one for one in warc.captures(stream, 1 << 20, Counter()) if "html" in one.content_type)
    for capture in captures[::8]:
        tree = trafilatura.utils.load_html(charset.decode(capture.payload or b"", capture.content_type)[0])
        for before, after in changed if tree is not None else []:
            elements = before(tree)
            assert elements == after(tree), (capture.url, before.path)
            found[before.path] += len(elements)
    assert sum(count > 0 for count in found.values()) >= (10 if SHARED else 3)


def test_no_pattern_is_found_in_the_text_of_an_attribute_that_is_absent() -> None:
    lists = [value for value in vars(trafilatura.xpaths).values() if isinstance(value, list)]
    paths = [expression.path for expressions in lists for expression in expressions]
    patterns = [pattern for path in paths for pattern in re.findall(r"re:test\(string\([^)]+\), '([^']*)'", path)]
    assert len(patterns) > 40 and sum(path.count("re:test") for path in paths) == len(patterns)
    assert not [pattern for pattern in patterns if re.search(pattern, "")]
