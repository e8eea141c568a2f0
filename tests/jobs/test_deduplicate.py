"""Copies in Spark equal what plain Python finds, and neither partitions nor order decide who stays."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash

from jobs.copies import clusters, minhash
from jobs.stage import decisions
from jobs.stage.table import read_rows, write_table
from pipeline import recipe
from pipeline.recipe import Deduplicate, UnverifiedDeduplicate
from pipeline.storage import Storage

RECIPE = recipe.load(Path(__file__).parents[2] / "recipes/demo.yaml").deduplicate
FUNCTIONS = minhash.permutations(RECIPE.bands * RECIPE.rows, 1)


def document(number: int, words: list[str]) -> dict[str, Any]:
    values = minhash.signature(words, RECIPE.ngram_words, FUNCTIONS)
    return {
        "id": f"{number:032x}",
        "exact": xxhash.xxh3_128_digest(" ".join(words).encode()),
        "bands": minhash.band_hashes(values, RECIPE.bands),
        "signature": minhash.shortened(values),
    }


def corpus(seed: int) -> list[dict[str, Any]]:
    """Texts of 200 words: exact copies, copies with some words changed, and copies of copies."""
    rng = random.Random(seed)
    texts: list[list[str]] = []
    for _ in range(120):
        draw = rng.random()
        if texts and draw < 0.2:
            texts.append(list(rng.choice(texts)))
        elif texts and draw < 0.6:
            text = list(rng.choice(texts))
            for at in rng.sample(range(len(text)), rng.choice([1, 2, 4, 8, 20])):
                text[at] = str(rng.random())
            texts.append(text)
        else:
            texts.append([str(rng.random()) for _ in range(200)])
    ids = sorted(rng.sample(range(10**6), len(texts)))
    return [document(number, text) for number, text in zip(ids, texts, strict=True)]


def unverified(**changes: Any) -> UnverifiedDeduplicate:
    """The demo's section without verification."""
    kept = RECIPE.model_dump(exclude={"verify", "min_jaccard"})
    return UnverifiedDeduplicate(verify=False, **kept | changes)


def plain(documents: list[dict[str, Any]], settings: Deduplicate) -> dict[str, tuple[str, str]]:
    """id -> (cluster, reason) of those that leave, by comparing all pairs."""
    first: dict[bytes, str] = {}
    for row in sorted(documents, key=lambda row: row["id"]):
        first.setdefault(row["exact"], row["id"])
    unique = [row for row in documents if first[row["exact"]] == row["id"]]
    root = {row["id"]: row["id"] for row in unique}

    def find(x: str) -> str:
        while root[x] != x:
            x = root[x]
        return x

    for left, right in combinations(unique, 2):
        shares = any(a == b for a, b in zip(left["bands"], right["bands"], strict=True))
        alike = minhash.similarities(left["signature"], right["signature"], 1)[0]
        if shares and alike >= getattr(settings, "min_jaccard", 0.0):
            low, high = sorted((find(left["id"]), find(right["id"])))
            root[high] = low
    gone = {i: (find(i), "near_copy") for i in root if find(i) != i}
    copies = [row for row in documents if first[row["exact"]] != row["id"]]
    return gone | {row["id"]: (find(first[row["exact"]]), "exact_copy") for row in copies}


def found(
    spark: Any,
    root: Path,
    documents: list[dict[str, Any]],
    settings: Deduplicate,
    parts: int,
    earlier: list[dict[str, Any]] | None = None,
) -> tuple[Any, Any]:
    """id -> (cluster, reason) of those that leave, and the numbers; documents lie in parts in order of their ids.

    Who stays for others must be told with how many they are together, in whatever part it lies.
    """
    storage, files, ids = Storage(root), [], []
    step = -(-len(documents) // parts)
    for i in range(parts):
        files.append(f"signatures-{i}.parquet")
        ids.append([row["id"] for row in documents[i * step : (i + 1) * step]])
        write_table(storage, files[-1], documents[i * step : (i + 1) * step], clusters.SIGNATURES)
    write_table(storage, "earlier.parquet", earlier or [], clusters.SIGNATURES)
    old = ["earlier.parquet"] if earlier else []
    corpus = clusters.Corpus(str(root), files, old, len(documents) + len(earlier or []))
    numbers = clusters.find(spark, corpus, settings, "clusters")
    gone, sizes = {}, {}
    for i, part in enumerate(ids):
        rows = list(read_rows(storage, f"clusters/{i}.parquet"))
        assert [row["row"] for row in rows] == sorted({row["row"] for row in rows})
        gone |= {part[row["row"]]: (row["cluster"], row["reason"]) for row in rows if row["reason"]}
        sizes |= {part[row["row"]]: row["cluster_size"] for row in rows if not row["reason"]}
        assert all((row["cluster_size"] is None) == (row["reason"] is not None) for row in rows)
    left = Counter(cluster for cluster, _ in gone.values())
    own = {row["id"] for row in documents}
    assert sizes == {cluster: count + 1 for cluster, count in left.items() if cluster in own}
    return gone, numbers


@pytest.mark.parametrize("verify", [True, False])
def test_equal_to_all_pairs_in_plain_python(spark: Any, tmp_path: Path, verify: bool) -> None:
    settings = RECIPE.model_copy(update={"max_bucket": 1000}) if verify else unverified(max_bucket=1000)
    documents = corpus(5)
    gone, numbers = found(spark, tmp_path, documents, settings, 2)
    assert gone == plain(documents, settings)
    assert {reason for _, reason in gone.values()} == {"exact_copy", "near_copy"}
    sizes: dict[str, int] = defaultdict(lambda: 1)
    for cluster, _ in gone.values():
        sizes[cluster] += 1
    assert (numbers["clusters"], numbers["largest_cluster"]) == (len(sizes), max(sizes.values()))
    assert numbers["verified_pairs"] <= numbers["candidate_pairs"]
    assert numbers["large_buckets"] == 0


def test_parts_and_order_do_not_decide_who_stays(spark: Any, tmp_path: Path) -> None:
    documents = corpus(6)
    gone, numbers = found(spark, tmp_path / "a", documents, RECIPE, 1)
    assert found(spark, tmp_path / "b", documents, RECIPE, 5) == (gone, numbers)
    partitions = spark.conf.get("spark.sql.shuffle.partitions")
    spark.conf.set("spark.sql.shuffle.partitions", 1)
    assert found(spark, tmp_path / "c", documents, RECIPE, 5) == (gone, numbers)
    spark.conf.set("spark.sql.shuffle.partitions", partitions)


def test_many_edges_are_connected_by_spark(spark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = corpus(9)
    few = found(spark, tmp_path / "few", documents, RECIPE, 2)
    monkeypatch.setattr(clusters, "FEW_EDGES", 0)
    assert found(spark, tmp_path / "many", documents, RECIPE, 2) == few


def test_large_buckets_are_starred_again_for_what_verification_rejects(spark: Any, tmp_path: Path) -> None:
    """Three families that share one band: a single star around the smallest id would lose two of them."""
    rng = random.Random(7)
    documents = []
    for family in range(3):
        text = [str(rng.random()) for _ in range(200)]
        for member in range(5):
            text = [*text[:-1], str(rng.random())]
            documents.append(document(family * 10 + member, text))
    for row in documents:
        row["bands"] = [7, *(rng.randrange(2**62) for _ in range(13))]  # nothing else leads them together
    settings = RECIPE.model_copy(update={"max_bucket": 4})
    gone, numbers = found(spark, tmp_path, documents, settings, 2)
    kept = [row["id"] for row in documents if row["id"] not in gone]
    assert kept == [f"{number:032x}" for number in (0, 10, 20)]
    assert {cluster for cluster, _ in gone.values()} == set(kept)
    assert numbers["large_buckets"] == 1
    assert numbers["candidate_pairs"] == 14 + 9 + 4
    assert numbers["verified_pairs"] == 12


def test_what_an_earlier_corpus_holds_is_dropped_for_it(spark: Any, tmp_path: Path) -> None:
    """As if both were one corpus, but that the earlier one's documents stay, whatever their ids."""
    documents = corpus(8)
    earlier, new = documents[::2], documents[1::2]
    stays = {row["id"] for row in earlier} - plain(earlier, RECIPE).keys()
    earlier = [row for row in earlier if row["id"] in stays]  # it was deduplicated then
    gone, numbers = found(spark, tmp_path, new, RECIPE, 3, earlier)
    # The same in plain Python: ids of the earlier corpus are made the smallest.
    marked = [row | {"id": ("0" if row["id"] in stays else "1") + row["id"]} for row in (*earlier, *new)]
    expected = {key: value for key, value in plain(marked, RECIPE).items() if key.startswith("1")}
    assert gone == {key[1:]: (cluster[1:], reason) for key, (cluster, reason) in expected.items()}
    assert numbers["known_before"] == sum(cluster in stays for cluster, _ in gone.values()) > 0


HASHES = RECIPE.bands * RECIPE.rows


def drifting(seed: int, most: int = 50) -> list[dict[str, Any]]:
    """Signatures without texts: exact copies, copies that drift from copy to copy, and documents that share one band.

    Most are made of one of the first few, so that buckets grow beyond any small `max_bucket`.
    """
    rng = np.random.default_rng(seed)
    values, exact = [], []
    for number in range(most):
        fresh, kind = rng.integers(0, 2**63, HASHES, dtype=np.uint64), rng.choice(["new", "exact", "near", "band"])
        source = int(rng.integers(min(number, 5 if rng.random() < 0.6 else number))) if number > 1 else 0
        keeps = np.zeros(HASHES, bool)
        if number and kind == "exact":
            keeps[:] = True
        elif number and kind == "near":  # what is kept of the signature is the estimated similarity: 0.96 to 0.62
            keeps[rng.permutation(HASHES)[: HASHES - rng.choice([4, 14, 28, 42])]] = True
        elif number and kind == "band":
            keeps[: RECIPE.rows] = True
        values.append(np.where(keeps, values[source], fresh) if number else fresh)
        exact.append(exact[source] if keeps.all() else rng.bytes(16))
    return [
        {
            "id": f"{number:032x}",
            "exact": exact[number],
            "bands": minhash.band_hashes(signature, RECIPE.bands),
            "signature": minhash.shortened(signature),
        }
        for number, signature in enumerate(values)
    ]


def unproven(documents: list[dict[str, Any]], gone: dict[str, tuple[str, str]]) -> set[str]:
    """Documents that no path of pairs, each as similar as is asked for, leads to the one that stays for them.

    A path runs through members of the cluster, found ones alone.
    """
    signatures = {row["id"]: row["signature"] for row in documents}
    members: dict[str, set[str]] = defaultdict(set)
    for name, (cluster, _) in gone.items():
        members[cluster].add(name)
    lost = set()
    for cluster, left in members.items():
        reached = [cluster]
        for name in reached:
            near = {
                other
                for other in left
                if minhash.similarities(signatures[name], signatures[other], 1)[0] >= RECIPE.min_jaccard
            }
            reached += near
            left = left - near
        lost |= left
    return lost


@pytest.mark.parametrize(("seed", "most"), [(1, 2), (2, 4), (3, 8)])
def test_no_cluster_without_a_verified_path(spark: Any, tmp_path: Path, seed: int, most: int) -> None:
    documents = drifting(seed)
    gone, numbers = found(spark, tmp_path, documents, RECIPE.model_copy(update={"max_bucket": most}), 3)
    assert numbers["large_buckets"] > 0
    assert {reason for _, reason in gone.values()} == {"exact_copy", "near_copy"}
    assert unproven(documents, gone) == set()
    ends: dict[bytes, set[str]] = defaultdict(set)
    for row in documents:
        ends[row["exact"]].add(gone.get(row["id"], (row["id"], ""))[0])
    assert max(map(len, ends.values())) == 1, "exact copies are in one cluster"


def test_without_verification_there_are_such_clusters(spark: Any, tmp_path: Path) -> None:
    """So the test above can fail: one band in common makes a cluster."""
    documents = drifting(1)
    gone, _ = found(spark, tmp_path, documents, unverified(max_bucket=2), 3)
    assert len(unproven(documents, gone)) > 10


def test_nothing_alike(spark: Any, tmp_path: Path) -> None:
    documents = [document(i, [f"{i}-{j}" for j in range(50)]) for i in range(3)]
    gone, numbers = found(spark, tmp_path, documents, RECIPE, 3)
    assert gone == {}
    assert (numbers["candidate_pairs"], numbers["clusters"], numbers["largest_cluster"]) == (0, 0, 1)


def test_the_rows_that_are_kept_come_in_order(tmp_path: Path) -> None:
    from jobs import extract, filter

    storage = Storage(tmp_path)
    rows = [{"id": name, "text": name * 2, "reason": None} for name in "dbca"]
    write_table(storage, "extract.parquet", [*rows, {"id": "x", "reason": "empty"}], extract.SCHEMA)
    decided = [{"id": name, "reason": "short" if name == "b" else None} for name in "dbca"]
    write_table(storage, "filter.parquet", decided, filter.SCHEMA)
    stay = decisions.kept(storage, decisions.Decided("0", "extract.parquet", "filter.parquet"), ("text",))
    assert list(stay) == [{"id": name, "text": name * 2} for name in "dca"]
