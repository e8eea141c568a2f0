"""The suffix array against sorting, and the longest spans against a plain search, on texts full of repeats."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evaluation import spans
from pipeline.errors import ArtifactError
from tests.training import support

DOCUMENT = st.lists(st.integers(0, 3), max_size=12)


@given(st.lists(st.integers(0, 3), max_size=200), st.integers(1, 70))
@settings(max_examples=100, deadline=None)
def test_the_order_is_that_of_the_suffixes(tokens: list[int], period: int) -> None:
    tokens = tokens + (tokens[:period] * 9)[:300]  # runs longer than the depth
    depth = spans.DEPTH
    expected = sorted(range(len(tokens)), key=lambda at: (tokens[at : at + depth], at))
    assert spans.suffix_array(np.array(tokens, np.uint16)).tolist() == expected


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.lists(DOCUMENT, max_size=6), min_size=1, max_size=3),
    st.lists(st.lists(st.integers(0, 4), max_size=20), max_size=4),
    st.integers(0, 30),
)
def test_the_longest_span_is_what_a_plain_search_finds(
    tmp_path: Path, parts: list[list[list[int]]], queries: list[list[int]], repeats: int
) -> None:
    parts[0] = [*parts[0], [1, 2, 0] * repeats]
    queries = [*queries, [2, 0, 1] * (repeats + 2)]
    shards = support.publish_shards(tmp_path, {f"train-{n:05d}": part for n, part in enumerate(parts)})
    found = spans.build(shards.storage, "demo", [shards]).spans(queries)
    texts = ["".join(map(str, (token for document in part for token in document))) for part in parts]

    def times(text: str) -> int:
        return sum(whole.startswith(text, at) for whole in texts for at in range(len(whole)))

    for query, span in zip(queries, found, strict=True):
        text = "".join(map(str, query))
        longest = max(
            (b - a for a in range(len(text)) for b in range(a + 1, len(text) + 1) if times(text[a:b])), default=0
        )
        assert span.length == longest
        said = text[span.start : span.start + span.length]
        assert span.times == (times(said) if longest else 0)
        if longest:
            number, document = span.document.removeprefix("train-").split("/")
            start = sum(map(len, parts[int(number)][: int(document)]))
            stop = start + len(parts[int(number)][int(document)])
            assert span.url == f"https://a.org/{span.document}"
            assert any(texts[int(number)].startswith(said, at) for at in range(start, stop))


def test_it_is_built_once_and_holds_the_training_split_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = support.publish_shards(
        tmp_path, {"train-00000": [[1, 2, 3]], "train-00001": [], "validation-00000": [[7, 8, 9]]}
    )
    index = spans.build(shards.storage, "demo", [shards])
    assert index.spans([[7, 8], [0, 2, 3, 9], []]) == [
        spans.Span(0, 0, 0, "", ""),
        spans.Span(1, 2, 1, "train-00000/0", "https://a.org/train-00000/0"),
        spans.Span(0, 0, 0, "", ""),
    ]
    before = sorted(tmp_path.glob("spans/**/*.order"))
    times = [path.stat().st_mtime_ns for path in before]
    spans.build(shards.storage, "demo", [shards])
    assert [path.stat().st_mtime_ns for path in before] == times and len(before) == 2
    support.run(spans, tmp_path, support.write(support.demo(64), tmp_path), monkeypatch)
    assert [path.stat().st_mtime_ns for path in before] == times
    monkeypatch.setattr("sys.argv", [*sys.argv, "--force"])
    spans.main()
    assert [path.stat().st_mtime_ns for path in before] != times


def test_an_index_of_another_length_is_refused(tmp_path: Path) -> None:
    shards = support.publish_shards(tmp_path, {"train-00000": [[1, 2, 3]]})
    spans.build(shards.storage, "demo", [shards])
    path = next(tmp_path.glob("spans/**/*.order"))
    path.write_bytes(path.read_bytes()[:-4])
    name = shards.files(".bin")[0]
    with pytest.raises(ArtifactError, match="does not belong to"):
        spans._IndexedShard(shards.storage, name, shards.storage.local_path(name), path)
