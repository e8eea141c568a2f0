"""How far the two sides keep the same pages: end to end, by their filters on the same texts, at the language gate.

Each function runs what it still needs, and returns Markdown tables.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from bench.comparison.sides import RECIPE, Bench, Variant, json_lines, percent, table
from jobs.page import quality
from pipeline.recipe import Filter, load

# Our score that corresponds to a reason of datatrove's.
OURS = {
    "dup_line_frac": "duplicate_lines",
    "dup_line_char_frac": "duplicate_line_chars",
    "dup_para_frac": "duplicate_paragraphs",
    "dup_para_char_frac": "duplicate_paragraph_chars",
    **{f"top_{n}_gram": f"top_{n}gram_chars" for n in quality.TOP_NGRAMS},
    **{f"duplicated_{n}_n_grams": f"duplicate_{n}gram_chars" for n in quality.DUPLICATE_NGRAMS},
    "gopher_short_doc": "words",
    "gopher_below_avg_threshold": "mean_word_length",
    "gopher_above_avg_threshold": "mean_word_length",
    "gopher_too_many_bullets": "bullet_lines",
    "gopher_too_many_end_ellipsis": "ellipsis_lines",
    "gopher_too_many_ellipsis": "symbol_word_ratio",
    "gopher_below_alpha_threshold": "alpha_words",
    "too_few_sentences": "sentences",
    "line_punct_ratio": "line_punctuation",
    "short_line_ratio": "short_lines_30",
    "char_dup_ratio": "duplicate_line_chars",
    "list_ratio": "newline_word_ratio",
}


def end_to_end(bench: Bench, variants: Sequence[Variant]) -> str:
    """Pages that each side keeps before deduplication, compared by URL; and the reasons where the two differ."""
    # 1. What datatrove keeps: with the limits of the paper, and with the published script's.
    bench.datatrove("published", bench.theirs)
    kept = {document["metadata"]["url"] for file in bench.theirs.glob("filtered/*") for document in json_lines(file)}
    published = kept - set(json.loads((bench.theirs / "published.json").read_text()))
    removed, recipe = bench.removed(), load(RECIPE).filter
    rows, causes = [], ""
    for variant in variants:
        # 2. How many of these each variant keeps too, and how many others.
        documents = bench.documents(variant)
        ours = {url for url, row in documents.items() if row["reason"] is None}
        for name, theirs in ((str(variant), kept), ("– as published: duplicate lines at most 0.01", published)):
            both, others = len(ours & theirs), len(ours - theirs)
            rows.append([name, len(theirs), len(ours), percent(both, len(theirs)), percent(others, len(theirs))])
        # 3. Of the first variant, which stands for all: every page that one side alone keeps, grouped by the reason
        # for which the other drops it.
        if not causes:
            missing: dict[str, Any] = {"reason": "not read"}
            differing = [("datatrove", documents.get(url, missing)["reason"], url) for url in sorted(kept - ours)]
            differing += [("us", removed.get(url, "no text, or not read"), url) for url in sorted(ours - kept)]
            groups: dict[tuple[str, str], list[str]] = defaultdict(list)
            with (bench.root / "disagreements.tsv").open("w") as lines:
                for by, reason, url in differing:
                    has_text = documents.get(url, missing).get("text")
                    value = score(documents[url], reason, recipe) if has_text else "–"
                    groups[by, reason].append(value)
                    print(by, reason, value, url, sep="\t", file=lines)
            causes = f"Where the two differ ({variant}); page by page in {lines.name}:\n\n" + table(
                ["kept by", "dropped by the other for", "pages", "our score for the rule that decides"],
                [
                    [*group, len(values), "; ".join(sorted(set(values) - {"–"})[:4])]
                    for group, values in sorted(groups.items(), key=lambda item: (item[0][0], -len(item[1])))
                ],
            )
    head = ["kept before deduplication", "datatrove", "ours", "of theirs, ours too", "others of ours"]
    return f"{table(head, rows)}\n{causes}"


def score(row: Mapping[str, Any], reason: str | None, recipe: Filter) -> str:
    """Value and limit of the rule that decides: the first that our scores break, else ours for datatrove's reason."""
    column = OURS.get((reason or "").rpartition(" ")[2])
    for check in quality.checks(row, recipe):
        if check.broken or (row["reason"] is None and check.score == column):
            return f"{check.score} {check.value:.4g} ({check.relation} {check.limit:.4g})"
    return "–"


def identical_text(bench: Bench, rows: Mapping[str, Mapping[str, Any]], limit: float) -> str:
    """datatrove's filters and ours on the same texts: those of our extraction without a language gate."""
    # 1. The texts, written for datatrove's filters to read.
    recipe = load(RECIPE).filter
    texts = [row for row in rows.values() if row["text"]]
    (bench.root / "texts.jsonl").write_text("".join(json.dumps({"text": row["text"]}) + "\n" for row in texts))
    lines, agree = [], []
    for threshold in (limit, 0.01):  # the paper's, and the published script's
        # 2. Verdicts of both sides, text by text. The first column leaves out what neither takes for English: on such a
        # text the two agree without a rule having decided.
        bench.datatrove("verdicts", bench.root / "texts.jsonl", bench.root / "verdicts.jsonl", threshold)
        verdicts = [json.loads(line)["reason"] for line in (bench.root / "verdicts.jsonl").read_text().splitlines()]
        pairs = list(zip(verdicts, texts, strict=True))
        english = [
            (verdict, row)
            for verdict, row in pairs
            if row["reason"] != "other_language" or not (verdict or "").startswith("LanguageFilter")
        ]
        same = [[(verdict is None) == (row["reason"] is None) for verdict, row in group] for group in (english, pairs)]
        agree.append([f"duplicate lines at most {threshold:g}", *(percent(sum(equal), len(equal)) for equal in same)])
        # 3. Where they differ at the paper's limit: the reasons of both.
        if threshold == limit:
            groups: dict[tuple[str, str], list[str]] = defaultdict(list)
            for reason, row in english:
                if (reason is None) != (row["reason"] is None):
                    groups[reason or "kept", row["reason"] or "kept"].append(score(row, reason, recipe))
            for (theirs, ours), scores in sorted(groups.items(), key=lambda item: -len(item[1])):
                lines.append([theirs, ours, len(scores), "; ".join(sorted(set(scores))[:4])])
    head = ["same verdict on the same text", "English by either", "all texts"]
    listed = table(["datatrove", "ours", "texts", "our score for the rule that decides"], lines)
    return f"{table(head, agree)}\n{listed}"


def gate(bench: Bench, variants: Sequence[Variant], rows: Mapping[str, Mapping[str, Any]]) -> str:
    """How many pages pass the language gate, of those whose extracted text is English, and of those kept in the end.

    `rows`: documents of a run without a language gate.
    """
    least = load(RECIPE).filter.languages["en"]
    english = {url for url, row in rows.items() if row["text"] and row["language_score"] >= least}
    kept = {url for url, row in rows.items() if row["reason"] is None}
    shares = []
    for variant in variants:
        stopped = {url for url, row in bench.documents(variant).items() if row["reason"] == "language_gate"}
        passed = (percent(len(pages - stopped), len(pages)) for pages in (english, kept))
        shares.append([variant, *passed, len(stopped)])
    return table(["pass the language gate", "English pages", "pages that are kept", "pages stopped"], shares)
