"""The report on a small run: what it shows, what is missing, and that hostile text is only text."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest

from pipeline import artifact, version
from pipeline.artifact import Counts
from pipeline.errors import ArtifactError, InputError
from pipeline.reasons import REASONS
from pipeline.stages import CORPUS, ROAD
from pipeline.storage import Storage
from tests.web.small_run import RUN, corpus, models, opened
from web import report
from web.report.__main__ import main
from web.report.learning import learned
from web.report.lineage import lineage, totals
from web.report.waterfall import waterfall
from web.terms import TERMS
from web.words import duration


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path / "root")


@pytest.fixture
def whole(storage: Storage) -> str:
    models(storage, corpus(storage)["shard"])
    return page(storage)


def page(storage: Storage) -> str:
    published = report.publish(storage, RUN)
    return storage.read(published.file(report.FILE)).decode()


class Page(HTMLParser):
    """Tags, attributes and text of a page, as a browser would parse them."""

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
        if tag not in ("meta", "link", "br", "img", "line", "polyline", "circle", "rect"):
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


def words(html: str) -> str:
    """What a reader of a page sees, with single spaces between words."""
    return " ".join(Page(html).text.split())


def test_hostile_text_stays_text(whole: str) -> None:
    parsed = Page(whole)
    assert not parsed.open, "every tag is closed, in order"
    assert not {"script", "img", "iframe", "object", "b", "i" if "<i>" in whole else "script"} & set(parsed.tags)
    assert parsed.tags.count("link") == 1, "the icon"
    assert not [name for name, _ in parsed.attributes if name.startswith("on") or name == "src"]
    links = [value or "" for name, value in parsed.attributes if name == "href"]
    assert {link[0] for link in links if not link.startswith("data:image/svg+xml,")} == {"#"}
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
    # A dropped bar begins where the kept one ends: nothing overlaps, nothing is left out.
    assert [bar["left"] for bar in bars if bar["kind"] == "dropped"] == [0.75, 0.6, 0.4, 0.3]
    text = words(whole)
    assert f"not 200 {REASONS['not_200']} 5 25.0%" in text
    assert "gopher min words 4 20.0%" in text, "a reason of another version has no explanation"


def test_documents_show_reason_scores_and_redacted_text(whole: str) -> None:
    text = words(whole)
    assert "http://a.example/4?<script>u4</script>" in text
    assert "Page 5 says write to <EMAIL>." in text and "Clean 5" in text, "what stayed is shown as it was written"
    assert "Title 5" not in text
    assert "Page 1 says write to <EMAIL> word" in text, "what was dropped was never redacted, so it is masked"
    assert "@example.org" not in text
    assert "English share <0.02>" in text
    assert text.count("kept instead: http://a.example/9?") == 2
    assert "english 0.5 words 200" in text


def test_what_stayed_is_what_the_shards_hold_and_a_page_taken_down_is_only_counted(
    storage: Storage, tmp_path: Path
) -> None:
    down = tmp_path / "down.txt"
    down.write_text("http://a.example/9?<script>u9</script>\nhttp://a.example/2?<script>u2</script>\n")
    corpus(storage, [down])
    text = words(page(storage))
    stayed = text[text.index("Stayed 4") : text.rindex("Personal data redacted")]
    assert [n for n in range(4, 10) if f"Clean {n}" in stayed] == [4, 5, 6]
    assert f"contaminated {REASONS['contaminated']} 1 5.0%" in text
    assert f"contaminated decontaminate 1 {REASONS['contaminated']} Clean 7" in text
    assert "set: 3 n-grams" in text
    assert f"taken down {REASONS['taken_down']} 1 5.0%" in text
    assert f"taken down decontaminate 1 {REASONS['taken_down']} Counted, never shown." in text
    for never in ("Clean 8", "a.example/8?", "a.example/9?", "a.example/2?"):  # as itself, or as another's copy
        assert never not in text
    assert text.count("kept instead: a page that is not shown") == 2


def test_without_a_take_down_list_of_the_run_no_page_is_shown(storage: Storage, tmp_path: Path) -> None:
    down = tmp_path / "down.txt"
    down.write_text("http://a.example/9?<script>u9</script>\n")
    corpus(storage, [down])
    down.unlink()
    with pytest.raises(InputError, match=r"down\.txt, a take-down list of this run, is not there"):
        report.publish(storage, RUN)


def test_what_did_not_run_is_named_whatever_stage_it_is(storage: Storage) -> None:
    opened(storage, "extract", []).publish([], Counts(in_=2, kept=2, dropped={}))
    text = words(page(storage))
    missing = text[text.rindex("Pages kept and dropped") : text.rindex("Example documents")]
    named = [step.name for step in ROAD if f"{step.label}: not run." in missing]
    assert named == ["filter", "deduplicate", "redact", "decontaminate", "shard"]  # not the canary, not the tokenizer


def test_redactions_tokens_and_story(whole: str) -> None:
    text = words(whole)
    assert "<EMAIL> 1,005 xx@x.xx x0@xx.xxx" in text
    assert "bytes per token 3.821" in text
    assert "1,234,567" in text
    assert "train bytes per token 4.05" in text
    assert "truncated: b<i>.gz <b>after 4 records</b>" in text
    assert "request 20, warcinfo 2" in text
    assert f"conversations 6,100 used 6,090 left out: too long 10 {REASONS['too_long']}" in text
    assert (
        "Of 20 responses in 2 WARC files, 6 documents stayed (30.0%); they became 1.23 M training tokens; a model of "
        "3.9 M parameters predicts held-out text at 1.81 bits per byte, where a table of token pairs needs 2.20; it "
        "answers 74.0% of the unseen arithmetic questions, 31.0% before reinforcement." in text
    )


def test_curves_have_text_alternatives_and_levels(whole: str) -> None:
    labels = [value or "" for name, value in Page(whole).attributes if name == "aria-label"]
    assert any("unigram table 2.91" in label and "bigram table 2.2" in label for label in labels)
    assert any("held out, sampled from 0.425 to 0.762; held out, greedy from 0.525" in label for label in labels)
    for title in ("Accuracy, arithmetic", "Tool calls", "Length of a sample", "Groups with differing rewards"):
        assert any(label.startswith(f"{title}: ") for label in labels)
    assert "nan" not in whole.lower().replace("lineage", "")


def test_models_stand_side_by_side(whole: str) -> None:
    text = words(whole)
    assert "Who are you? Base Said nothing. Fine-tuned I am <b>sft</b>. Reinforced I am <b>rl</b>." in text
    assert f"arithmetic: sampled accuracy {TERMS['sampled_accuracy']} 0.0% 31.0% 74.0%" in text
    assert "Asked: 200 arithmetic questions, 4 samples of each." in text
    assert "arithmetic: questions" not in text, "how much was asked is no measurement"
    assert "a tool is called in 74.0% of samples, 31.0% before; a sample takes 9.5 tokens, 9.5 before." in text


def test_answers_are_read_as_in_the_terminal_and_marked_right_or_wrong(whole: str) -> None:
    text = words(whole)
    answers = text[text.index("What is 312 - 148?") :]
    assert answers.startswith(
        "What is 312 - 148? Base ✗ wrong 298 Fine-tuned ✗ wrong [calculator: 312-148 = 164] 298 "
        "Reinforced ✓ right [calculator: 312-148 = 164] 164"
    )
    assert "Are you a lamp? Base No, says pretrain. Fine-tuned ✗ wrong I am crawl2chat, says sft." in text
    assert "<|tool|>" not in text


def test_what_is_shown_is_explained_where_it_stands(whole: str) -> None:
    text = words(whole)
    assert f"known before 0 {TERMS['known_before']}" in text
    assert f"bits per byte 1.812 {TERMS['bits_per_byte']}" in text
    assert f"bigram weight 0.77 {TERMS['bigram_weight']}" in text


def test_every_link_leads_to_a_section_and_every_section_is_in_the_contents(whole: str, storage: Storage) -> None:
    parsed = Page(whole)
    ids = [value for name, value in parsed.attributes if name == "id"]
    links = [value[1:] for name, value in parsed.attributes if name == "href" and value and value[0] == "#"]
    assert len(ids) == len(set(ids)) and set(links) <= set(ids)
    sections = [value for name, value in parsed.attributes if name == "aria-labelledby"]
    assert links[-len(sections) :] == sections, "the contents follow the chips, in the order of the page"
    assert len(links) == len(ROAD) + len(sections), "a chip for each stage"
    storage.remove(f"runs/{RUN}/rl.json")
    assert "<a href" not in page(storage).split("Reinforcement learning")[0].rsplit("<li", 1)[1], "nothing to lead to"


def test_costs_are_summed(whole: str, storage: Storage) -> None:
    chain = lineage(report.opened(storage, RUN))
    (total,) = totals(chain)
    assert total["files"] == sum(len(entry["content"].files) for entry in chain)
    assert total["seconds"] == pytest.approx(sum(entry["run"].seconds for entry in chain))
    assert f"Total {duration(total['seconds'])} {duration(total['cpu_seconds'])}" in words(whole)
    assert totals([]) == [], "nothing was published"
    chain[0]["state"] = "reused"
    _, own = totals(chain)
    assert own["label"] == "of this run" and own["files"] == total["files"] - len(chain[0]["content"].files)


def test_the_commit_of_the_code_is_named(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(version, "commit", lambda: "aaaaaaaaaaaa")
    shard = corpus(storage)["shard"]
    assert "Code: commit aaaaaaaaaaaa." in words(page(storage))
    monkeypatch.setattr(version, "commit", lambda: "bbbbbbbbbbbb+")
    models(storage, shard)
    text = words(page(storage))
    assert "Decontaminate, Tokenizer, Shard); commit bbbbbbbbbbbb+ (Pretraining, " in text
    assert "A + marks files that differ from the commit." in text


def test_a_name_of_a_kind_is_never_broken(whole: str) -> None:
    assert 'class="plain kinds"' in whole
    assert ".kinds th code, .keys th code { white-space: nowrap;" in whole
    assert ".keys td { min-width: 9rem; }" in whole, "beside a long key, its value is not broken either"


def test_lineage_names_every_artifact(whole: str, storage: Storage) -> None:
    for stage in ROAD:
        pointer = artifact.pointer(storage, RUN, stage.name)
        assert pointer and pointer.folder in whole and pointer.content_hash in whole
    assert "crawl/&lt;b&gt;.warc.gz" in whole


def test_a_run_that_is_not_finished_invents_nothing(storage: Storage) -> None:
    shard = corpus(storage)["shard"]
    opened(storage, "pretrain", [shard])  # still running
    html = page(storage)
    text = words(html)
    assert "Pretraining not finished" in text
    assert "Reinforcement learning not run" in text
    assert "bits per byte" not in text
    assert "<polyline" not in html
    assert text.count("Not run.") >= 4


def test_only_models_no_pages(storage: Storage) -> None:
    building = opened(storage, "pretrain", [])
    building.publish([], numbers={"bits_per_byte": 2.0})
    text = words(page(storage))
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
    forced = report.publish(storage, RUN, force=True)
    assert forced.manifest.content_hash == first.manifest.content_hash
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
    assert "did not change beyond chance (from 30.0% to 33.0%)" in learned(report.opened(storage, RUN))
    evaluated("rl", 0.60)
    assert "got better, from 30.0% to 60.0%" in learned(report.opened(storage, RUN))
    evaluated("rl", 0.10)
    assert "got worse, from 30.0% to 10.0%" in learned(report.opened(storage, RUN))


def test_command_line(storage: Storage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    corpus(storage)
    monkeypatch.setattr("sys.argv", ["report", "--root", storage.root, "--run", RUN])
    main()
    assert Path(capsys.readouterr().out.splitlines()[-1]).is_file()
