"""The report on a small run built here: what it shows, what is missing, and that hostile text is only text."""

from __future__ import annotations

import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import artifact
from pipeline.artifact import Building, Counts, File, Published, Stage
from pipeline.errors import ArtifactError
from pipeline.stages import CORPUS, ROAD
from pipeline.storage import Storage
from web import report
from web.report.__main__ import main
from web.report.learning import learned
from web.report.waterfall import waterfall

HOSTILE = "</p><script>alert('x')</script><img src=x onerror=alert(1)> {{ 7*7 }} \x07\u202e hidden"
RUN = "small"
STARTS = {"greedy": 0.4, "sampled": 0.3}  # accuracies before reinforcement


def opened(storage: Storage, name: str, sources: list[Published], recipe: dict[str, Any] | None = None) -> Building:
    stage = name.partition("-")[0]
    inputs = [source.as_input() for source in sources] or [
        artifact.Input(stage="warc", location="crawl/<b>.warc.gz", fingerprint="", content="sha256:0")
    ]
    building = artifact.open_stage(storage, RUN, Stage(stage, 1), recipe or {"of": name}, 1, inputs, name=name)
    assert isinstance(building, Building)
    return building


def table(building: Building, rows: list[dict[str, Any]]) -> list[File]:
    with building.storage.writing(building.file("part-00000.parquet")) as stream:
        pq.write_table(pa.Table.from_pylist(rows), stream)
    return [artifact.describe(building.storage, building.pointer.folder, "part-00000.parquet", len(rows))]


def lines(building: Building, path: str, rows: list[dict[str, Any]]) -> File:
    building.storage.write(building.file(path), "".join(json.dumps(row) + "\n" for row in rows).encode())
    return artifact.describe(building.storage, building.pointer.folder, path, len(rows))


def corpus(storage: Storage, take_down: list[Path] | None = None) -> dict[str, Published]:
    """Twenty responses: 8 fall in extract, 4 in filter, 2 in deduplicate; 6 stay.

    With lists to `take_down`, one of those six is taken down, and one more is contaminated.
    """
    take_down = take_down or []
    texts = [f"Page {n} says write to a{n}@example.org. " + "word " * 200 for n in range(12)]
    texts[0] = texts[4] = HOSTILE
    pages = [
        {
            "id": f"{n:032x}",
            "url": f"http://a.example/{n}?<script>u{n}</script>",
            "host": "a.example",
            "title": f"<b>Title {n}</b>",
            "text": texts[n] if n < 12 else None,
            "english": 0.5 + n / 40 if n < 12 else None,
            "words": 200 if n < 12 else None,
            "reason": None if n < 12 else ("not_200" if n < 17 else "language_gate"),
            "detail": "English share <0.02>" if n >= 17 else None,
        }
        for n in range(20)
    ]
    opened(storage, "canary", []).publish([], None, {"files": 2, "canary_files": 0})
    building = opened(storage, "extract", [])
    extract = building.publish(
        table(building, pages),
        Counts(in_=20, kept=12, dropped={"not_200": 5, "language_gate": 3}),
        {
            "warcs": 2,
            "unreadable": [{"warc": "b<i>.gz", "reason": "truncated", "detail": "<b>after 4 records</b>"}],
            "other_records": {"request": 20, "warcinfo": 2},
        },
    )
    building = opened(storage, "filter", [extract])
    decided = [{"id": f"{n:032x}", "reason": "gopher_min_words" if n < 4 else None} for n in range(12)]
    filtered = building.publish(table(building, decided), Counts(in_=12, kept=8, dropped={"gopher_min_words": 4}))
    building = opened(storage, "deduplicate", [extract, filtered])
    same = [
        {"id": f"{n:032x}", "cluster": f"{min(n, 9):032x}", "reason": "near_copy" if n > 9 else None}
        for n in range(4, 12)
    ]
    numbers = {"candidate_pairs": 3, "verified_pairs": 2}
    unique = building.publish(table(building, same), Counts(in_=8, kept=6, dropped={"near_copy": 2}), numbers)
    building = opened(storage, "redact", [extract, unique], {"kinds": ["EMAIL", "IP"]})
    clean = [
        {
            "id": p["id"],
            "url": p["url"],
            "title": f"Clean {n}",
            "text": str(p["text"]).replace(f"a{n}@example.org", "<EMAIL>"),
        }
        for n, p in enumerate(pages)
        if 4 <= n < 10
    ]
    redacted = building.publish(
        table(building, clean),
        Counts(in_=6, kept=6, dropped={}),
        {"redactions": {"EMAIL": 1005, "IP": 2}, "samples": {"EMAIL": ["xx@x.xx", "x0@xx.xxx"]}},
    )
    building = opened(storage, "decontaminate", [redacted], {"take_down": [str(file) for file in take_down]})
    left = {7: "contaminated", 8: "taken_down"} if take_down else {}
    decisions = [
        {"id": p["id"], "reason": left.get(n), "detail": "set: 3 n-grams" if n in left else None}
        for n, p in enumerate(pages)
        if 4 <= n < 10
    ]
    reasons = dict.fromkeys(left.values(), 1)
    decided = building.publish(table(building, decisions), Counts(in_=6, kept=6 - len(left), dropped=reasons))
    building = opened(storage, "tokenizer", [redacted, decided])
    tokenizer = building.publish([], numbers={"vocabulary": 4096, "bytes_per_token": 3.8211})
    building = opened(storage, "shard", [redacted, decided, tokenizer])
    sidecar = table(building, [{"id": row["id"]} for row in decisions if row["reason"] is None])
    kept = Counts(in_=6 - len(left), kept=6 - len(left), dropped={})
    shard = building.publish(sidecar, kept, {"train_tokens": 1_234_567, "train_bytes": 5_000_000})
    return {"extract": extract, "redact": redacted, "tokenizer": tokenizer, "shard": shard}


def models(storage: Storage, shard: Published) -> None:
    building = opened(storage, "pretrain", [shard])
    steps: list[dict[str, Any]] = [
        {"step": n, "loss": 8 * math.exp(-n / 60) + 3 + math.sin(n) / 5} for n in range(1, 401)
    ]
    steps[200]["loss"] = None  # a skipped step
    for row in steps[49::50]:
        row |= {"validation_loss": row["step"] ** -0.2 * 9, "bits_per_byte": row["step"] ** -0.2 * 6}
    said = [{"step": n, "prompt": "The <i>", "text": f"<script>{n}</script> of the"} for n in (50, 100, 200, 400)]
    files = [lines(building, "metrics.jsonl", steps), lines(building, "samples.jsonl", said)]
    base = building.publish(
        files,
        numbers={
            "parameters": 3_900_000,
            "bits_per_byte": 1.812,
            "unigram_bits_per_byte": 2.91,
            "bigram_bits_per_byte": 2.203,
        },
        run_numbers={"tokens_per_second": 5123.4},
    )
    building = opened(storage, "sft", [base])
    steps = [{"step": n, "loss": 3 * math.exp(-n / 40) + 0.3} for n in range(1, 200)]
    counts = Counts(in_=6100, kept=6090, dropped={"too_long": 10})
    tuned = building.publish([lines(building, "metrics.jsonl", steps)], counts, {"loss_last": 0.31})
    building = opened(storage, "rl", [tuned])
    steps = [
        {
            "step": n,
            "reward": 0.3 + n / 80 + math.sin(n) / 20,
            "tool_rate": 0.2 + n / 60,
            "length": 12 - n / 9,
            "informative_groups": 1 - n / 40,
            "loss": 0.0,
        }
        for n in range(1, 38)
    ]
    for row in (steps[9], steps[19], steps[29], steps[36]):
        row |= {
            "arithmetic.greedy_accuracy": 0.4 + row["step"] / 80,
            "arithmetic.sampled_accuracy": 0.3 + row["step"] / 80,
        }
    better = building.publish([lines(building, "metrics.jsonl", steps)], numbers={})
    for name, made, right in (("pretrain", base, 0.0), ("sft", tuned, 0.31), ("rl", better, 0.74)):
        building = opened(storage, f"evaluation-{name}", [made], {"arithmetic": 200})
        results = {
            "continuations": [{"prompt": "The", "text": f"{HOSTILE} from {name}"}],
            "chats": [{"user": "Who are you?", "assistant": f"I am <b>{name}</b>." if name != "pretrain" else ""}],
            "identity": [{"user": "Are you a lamp?", "claims": False, "assistant": f"No, says {name}."}],
        }
        storage.write(building.file("results.json"), json.dumps(results).encode())
        building.publish(
            [artifact.describe(storage, building.pointer.folder, "results.json", 1)],
            numbers={
                f"arithmetic.{name}": value
                for name, value in {
                    "sampled_accuracy": right,
                    "greedy_accuracy": right,
                    "tool_rate": right,
                    "answer_length": 9.5,
                }.items()
            },
        )


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path / "root")


@pytest.fixture
def whole(storage: Storage) -> str:
    models(storage, corpus(storage)["shard"])
    return page(storage)


def page(storage: Storage) -> str:
    made = report.publish(storage, RUN)
    return storage.read(made.file(report.FILE)).decode()


class Page(HTMLParser):
    """Tags, attributes and text, as a browser's parser sees them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "link", "br", "img", "line", "polyline", "circle"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag in ("dt", "dd", "th", "td"):
            self.text += " "

    def handle_data(self, data: str) -> None:
        self.text += data


def test_hostile_text_stays_text(whole: str) -> None:
    parsed = Page(whole)
    assert not parsed.open, "every tag is closed, in order"
    assert not {"script", "img", "iframe", "link", "object", "b", "i" if "<i>" in whole else "script"} & set(
        parsed.tags
    )
    assert not [name for name, _ in parsed.attributes if name.startswith("on") or name in ("href", "src")]
    assert "<script>alert('x')</script>" in parsed.text, "shown as it is"
    assert "{{ 7*7 }}" in parsed.text
    assert "\x07" not in whole


def test_nothing_is_fetched(whole: str) -> None:
    assert "default-src 'none'" in whole
    assert "url(" not in whole and "@import" not in whole


def test_every_count_of_the_fall_is_there(whole: str, storage: Storage) -> None:
    bars = waterfall(report.opened(storage, RUN))
    assert [(bar["label"], bar["count"]) for bar in bars] == [
        ("Responses read", 20),
        ("not_200", 5),
        ("language_gate", 3),
        ("After extract", 12),
        ("gopher_min_words", 4),
        ("After filter", 8),
        ("near_copy", 2),
        ("After deduplicate", 6),
        ("After redact", 6),
        ("After decontaminate", 6),
        ("After shard", 6),
    ]
    # A dropped bar stands where the kept one ends: nothing overlaps, nothing is left out.
    assert [bar["left"] for bar in bars if bar["kind"] == "dropped"] == [0.75, 0.6, 0.4, 0.3]
    text = " ".join(Page(whole).text.split())
    assert "not 200 5 25%" in text
    assert "gopher min words 4 20%" in text


def test_documents_show_reason_scores_and_redacted_text(whole: str) -> None:
    text = " ".join(Page(whole).text.split())
    assert "http://a.example/4?<script>u4</script>" in text
    assert "Page 5 says write to <EMAIL>." in text and "Clean 5" in text, "what stayed is shown as it was written"
    assert "Title 5" not in text
    assert "Page 1 says write to <EMAIL> word" in text, "what was dropped was never redacted, so it is masked"
    assert "@example.org" not in text
    assert "English share <0.02>" in text
    assert text.count("in its place stays http://a.example/9?") == 2
    assert "english 0.5 words 200" in text


def test_what_stayed_is_what_the_shards_hold_and_a_page_taken_down_is_only_counted(
    storage: Storage, tmp_path: Path
) -> None:
    down = tmp_path / "down.txt"
    down.write_text("http://a.example/9?<script>u9</script>\nhttp://a.example/2?<script>u2</script>\n")
    corpus(storage, [down])
    text = " ".join(Page(page(storage)).text.split())
    stayed = text[text.index("Stayed 4") : text.index("Personal data redacted")]
    assert [n for n in range(4, 10) if f"Clean {n}" in stayed] == [4, 5, 6]
    assert "contaminated 1 5.0%" in text and "contaminated decontaminate 1 Clean 7" in text
    assert "set: 3 n-grams" in text
    assert "taken down 1 5.0%" in text and "taken down decontaminate 1 Counted, never shown." in text
    for never in ("Clean 8", "a.example/8?", "a.example/9?", "a.example/2?"):  # as itself, or as another's copy
        assert never not in text
    assert text.count("in its place stays a page that is not shown") == 2


def test_what_did_not_run_is_named_whatever_stage_it_is(storage: Storage) -> None:
    opened(storage, "extract", []).publish([], Counts(in_=2, kept=2, dropped={}))
    text = " ".join(Page(page(storage)).text.split())
    missing = text[text.index("Pages kept and dropped") : text.index("Documents to judge by")]
    told = [step.name for step in ROAD if f"{step.label}: not run." in missing]
    assert told == ["filter", "deduplicate", "redact", "decontaminate", "shard"]  # not the canary, not the tokenizer


def test_redactions_tokens_and_story(whole: str) -> None:
    text = " ".join(Page(whole).text.split())
    assert "<EMAIL> 1,005 xx@x.xx x0@xx.xxx" in text
    assert "bytes per token 3.821" in text
    assert "1,234,567" in text
    assert "train bytes per token 4.05" in text
    assert "truncated: b<i>.gz <b>after 4 records</b>" in text
    assert "request 20, warcinfo 2" in text
    assert "conversations 6,100 used 6,090 left out: too long 10" in text
    assert (
        "Of 20 responses in 2 WARC files, 6 documents stayed (30%); they became 1.23 M training tokens; a model of "
        "3.9 M parameters predicts held-out text at 1.81 bits per byte, where a table of token pairs needs 2.20; it "
        "answers 74% of the unseen arithmetic questions, 31% before reinforcement." in text
    )


def test_curves_have_text_alternatives_and_levels(whole: str) -> None:
    labels = [value or "" for name, value in Page(whole).attributes if name == "aria-label"]
    assert any("unigram table 2.91" in label and "bigram table 2.2" in label for label in labels)
    assert any("held out, sampled from 0.425 to 0.762; held out, greedy from 0.525" in label for label in labels)
    for title in ("Accuracy, arithmetic", "Tool calls", "Length of a sample", "Groups with differing rewards"):
        assert any(label.startswith(f"{title}: ") for label in labels)
    assert "nan" not in whole.lower().replace("lineage", "")


def test_models_stand_side_by_side(whole: str) -> None:
    text = " ".join(Page(whole).text.split())
    assert "Who are you? Base Said nothing. Fine-tuned I am <b>sft</b>. Reinforced I am <b>rl</b>." in text
    assert "arithmetic: sampled accuracy 0% 31% 74%" in text
    assert "Are you a lamp? Base No, says pretrain." in text
    assert "a tool is called in 74% of samples, 31% before; a sample takes 9.5 tokens, 9.5 before." in text


def test_lineage_names_every_artifact(whole: str, storage: Storage) -> None:
    for stage in ROAD:
        pointer = artifact.pointer(storage, RUN, stage.name)
        assert pointer and pointer.folder in whole and pointer.content_hash in whole
    assert "crawl/&lt;b&gt;.warc.gz" in whole


def test_a_run_that_is_not_finished_invents_nothing(storage: Storage) -> None:
    shard = corpus(storage)["shard"]
    opened(storage, "pretrain", [shard])  # still running
    html = page(storage)
    text = " ".join(Page(html).text.split())
    assert "Pretraining not finished" in text
    assert "Reinforcement learning not run" in text
    assert "bits per byte" not in text
    assert "<polyline" not in html
    assert text.count("Not run.") >= 4


def test_only_models_no_pages(storage: Storage) -> None:
    building = opened(storage, "pretrain", [])
    building.publish([], numbers={"bits_per_byte": 2.0})
    text = " ".join(Page(page(storage)).text.split())
    assert "A model predicts held-out text at 2.00 bits per byte." in text
    assert "Extract: not run." in text


def test_the_recipe_is_named_by_its_file(storage: Storage) -> None:
    corpus(storage)
    storage.write(f"runs/{RUN}/recipe.yaml", b"name: my-recipe\nold: key\n")
    assert "<h1>my-recipe</h1>" in page(storage)


def test_no_run_is_an_error_that_names_it(storage: Storage) -> None:
    with pytest.raises(ArtifactError, match=r"run 'small' .* has published nothing"):
        report.publish(storage, RUN)


def test_same_artifacts_same_report_and_new_ones_a_new_one(storage: Storage) -> None:
    shard = corpus(storage)["shard"]
    first, again = report.publish(storage, RUN), report.publish(storage, RUN)
    assert first.folder == again.folder
    assert len(first.content.inputs) == len(CORPUS) + 1
    made_again = report.publish(storage, RUN, force=True)
    assert made_again.manifest.content_hash == first.manifest.content_hash
    models(storage, shard)
    assert report.publish(storage, RUN).folder != first.folder
    pointer = artifact.pointer(storage, RUN, "report")
    assert pointer and pointer.state == "published"


def test_learned_is_honest(storage: Storage) -> None:
    def evaluated(model: str, right: float) -> None:
        building = opened(storage, f"evaluation-{model}", [], {"of": model, "right": right})
        building.publish([], numbers={"arithmetic.sampled_accuracy": right, "arithmetic.questions": 200})

    evaluated("sft", 0.30)
    evaluated("rl", 0.33)
    assert "did not change beyond chance (from 30% to 33%)" in learned(report.opened(storage, RUN))
    evaluated("rl", 0.60)
    assert "got better, from 30% to 60%" in learned(report.opened(storage, RUN))
    evaluated("rl", 0.10)
    assert "got worse, from 30% to 10%" in learned(report.opened(storage, RUN))


def test_command_line(storage: Storage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    corpus(storage)
    monkeypatch.setattr("sys.argv", ["report", "--root", storage.root, "--run", RUN])
    main()
    assert Path(capsys.readouterr().out.splitlines()[-1]).is_file()
