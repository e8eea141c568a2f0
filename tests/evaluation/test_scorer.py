"""Benchmarks by log-likelihood: formats, context and choice, the window; the harness's numbers where installed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from evaluation import benchmarks, demonstrations
from evaluation.benchmarks import Item
from evaluation.scorer import Scorer
from inference.network import build
from pipeline import recipe
from pipeline.errors import InputError, RecipeError
from pipeline.recipe import Benchmark
from tests.training import support
from tests.training.support import REPOSITORY
from tokenizer import bpe
from tokenizer.chat import PAD
from training.engine.export import export

WORDS = "river stone lamp garden winter paper bridge music"
TOKENIZER = bpe.Tokenizer.from_bytes(bpe.train([f"Question: the {WORDS}\nAnswer: A. B."] * 3, 420, "qwen2"))

ROWS: dict[str, list[dict[str, Any]]] = {
    "hellaswag": [
        {
            "activity_label": "Making tea",
            "ctx_a": "A woman fills a kettle  with water.",
            "ctx_b": "she",
            "endings": ["lights the [step] stove.", "paints a river. [title] End", "reads paper", "sings to a lamp"][n:]
            + ["lights the [step] stove.", "paints a river. [title] End", "reads paper", "sings to a lamp"][:n],
            "label": str(n),
        }
        for n in range(4)
    ],
    "arc": [
        {
            "question": f"Which of these is number {n} of the garden?",
            "choices": {"text": WORDS.split()[n : n + 4], "label": ["A", "B", "C", "D"]},
            "answerKey": "ABCD"[n % 4],
        }
        for n in range(4)
    ],
    "mmlu": [
        {
            "question": f" What crosses the {word}? ",
            "subject": "civil_engineering",
            "choices": ["a bridge", "music", "winter", "paper"],
            "answer": n % 4,
        }
        for n, word in enumerate(WORDS.split())
    ],
    "lambada": [{"text": f"In the {word} there was a lamp, and beside it a {word}"} for word in WORDS.split()],
}


def network(window: int = 160) -> Any:
    config = recipe.load(REPOSITORY / "recipes" / "demo.yaml").model
    sizes = {"layers": 2, "width": 32, "heads": 2, "kv_heads": 1, "head_dim": 16, "mlp_width": 64, "window": window}
    net: Any = build(
        config.model_copy(update=sizes), TOKENIZER.vocabulary, TOKENIZER.end_of_text, TOKENIZER.special(PAD), 3
    )
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(3.0)  # less even distributions, so that choices differ
    return net


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def task(kind: str, file: str, shots: int = 0, most: int | None = None) -> Benchmark:
    return Benchmark(name=kind, kind=kind, file=file, shots=shots, examples=file if shots else None, most=most)  # type: ignore[arg-type]


def test_formats_read_as_their_prompts() -> None:
    swag = benchmarks.hellaswag(ROWS["hellaswag"][1])
    assert swag == Item(
        "Making tea: A woman fills a kettle with water. She",
        ("paints a river.. End", "reads paper", "sings to a lamp", "lights the stove."),
        1,
    )
    plain = benchmarks.arc(ROWS["arc"][1])
    assert plain.context.endswith("garden?\nAnswer:") and plain.choices[plain.gold] == "lamp"
    stem = {"stem": "Which?", "choices": [{"text": "x", "label": "1"}, {"text": "y", "label": "2"}]}
    assert benchmarks.arc({"question": stem, "answerKey": "2"}) == Item("Question: Which?\nAnswer:", ("x", "y"), 1)
    exam = benchmarks.mmlu(ROWS["mmlu"][2])
    assert exam.context == "What crosses the lamp?\nA. a bridge\nB. music\nC. winter\nD. paper\nAnswer:"
    assert exam.choices == ("A", "B", "C", "D") and "about civil engineering." in exam.description
    assert exam.as_example() == exam.context + " C\n\n"
    assert benchmarks.lambada(ROWS["lambada"][0]) == Item(
        "In the river there was a lamp, and beside it a", ("river",), 0
    )


def test_scores_of_a_batch_are_those_of_single_rows_and_of_a_plain_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net = network()
    scorer = Scorer(net, TOKENIZER)
    rows = [scorer.pair(f"the {WORDS[: n * 5]}", f" {word}") for n, word in enumerate(WORDS.split())]
    together = scorer.score(rows)
    monkeypatch.setattr("evaluation.scorer._BATCH_TOKENS", 1)
    alone = scorer.score(rows)
    for (ids, count), (value, likeliest), (other, _) in zip(rows, together, alone, strict=True):
        with torch.no_grad():
            logits = net(torch.tensor([ids])).logits[0].float()
        logprobs = torch.log_softmax(logits, -1)[torch.arange(len(ids) - 1), torch.tensor(ids[1:])][-count:]
        assert value == pytest.approx(float(logprobs.sum()), abs=1e-4) == pytest.approx(other, abs=1e-4)
        assert likeliest == (logits[:-1].argmax(-1)[-count:].tolist() == ids[-count:])


def test_blanks_before_the_choice_are_scored_with_it() -> None:
    scorer = Scorer(network(), TOKENIZER)
    for context, choice in (("the river ", "stone"), ("the river", " stone"), ("", "stone"), ("  ", "stone")):
        ids, count = scorer.pair(context, choice)
        assert TOKENIZER.decode(ids[-count:]) == (context[len(context.rstrip()) :] + choice)
    assert scorer.pair("", "stone")[0][0] == TOKENIZER.end_of_text


def test_a_long_row_loses_its_beginning_and_a_long_choice_is_refused() -> None:
    scorer = Scorer(network(window=16), TOKENIZER)
    ids = TOKENIZER.encode(WORDS * 4)
    assert scorer.score([(ids, 3)])[0][0] == pytest.approx(scorer.score([(ids[-17:], 3)])[0][0], abs=1e-5)
    with pytest.raises(InputError, match="17 tokens exceeds the window of 16"):
        scorer.score([(ids, 17)])


def test_bits_per_byte_score_every_token_once(tmp_path: Path) -> None:
    net = network(window=16)
    text = f"{WORDS} {WORDS} and a bridge."
    found = benchmarks.evaluate(Scorer(net, TOKENIZER), task("text", write(tmp_path / "t.jsonl", [{"text": text}])))
    ids = [TOKENIZER.end_of_text, *TOKENIZER.encode(text)]
    cost = 0.0
    for at in range(1, len(ids)):
        first = (at - 1) // 16 * 16  # where this window begins; the last one begins as early as the window allows
        if first + 16 >= len(ids):
            first = max(0, len(ids) - 17)
        with torch.no_grad():
            cost -= float(torch.log_softmax(net(torch.tensor([ids[first:at]])).logits[0, -1].float(), -1)[ids[at]])
    assert found == {"questions": 1, "bits_per_byte": pytest.approx(cost / math.log(2) / len(text.encode()), abs=1e-4)}


def test_accuracies_and_perplexity() -> None:
    items = [Item("", ("ab", "abcd"), 0), Item("", ("ab", "abcd"), 1)]
    scores = [(-3.0, False), (-4.0, False), (-3.0, False), (-4.0, False)]
    found = benchmarks._multiple_choice(scores, items)
    assert (found["accuracy"], found["accuracy_normalised"]) == (0.5, 0.5)
    assert benchmarks._multiple_choice(scores[:2], items[:1]) == {
        "accuracy": 1.0, "accuracy_error": 0.0, "accuracy_normalised": 0.0, "accuracy_normalised_error": 0.0,
    }  # fmt: skip
    last = benchmarks._last_words([(-1.0, True), (-3.0, False)])
    assert last == {"accuracy": 0.5, "accuracy_error": 0.5, "perplexity": round(math.exp(2.0), 4)}


@pytest.mark.parametrize(
    ("kind", "line", "said"),
    [
        ("arc", "{", r"rows\.jsonl:2: no arc item"),
        ("arc", '{"question": "a", "choices": {"text": ["a"], "label": ["A"]}, "answerKey": "Z"}', ":2: no arc item"),
        ("mmlu", '{"question": "a", "subject": "b", "choices": ["c"], "answer": 1}', ":2: no mmlu item"),
        ("lambada", '{"text": "word"}', ":2: no lambada item"),
        ("hellaswag", "[]", ":2: no hellaswag item"),
        ("text", '{"text": ""}', ":2: no text item"),
    ],
)
def test_a_line_that_is_no_item_is_named(tmp_path: Path, kind: str, line: str, said: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f"\n{line}\n")
    with pytest.raises(InputError, match=said):
        benchmarks.read(str(path), kind, None)


def test_what_cannot_be_measured_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        benchmarks.read(str(tmp_path / "none.jsonl"), "arc", None)
    file = write(tmp_path / "arc.jsonl", ROWS["arc"])
    with pytest.raises(InputError, match="holds 4 items, 9 are asked for"):
        benchmarks.evaluate(Scorer(network(), TOKENIZER), task("arc", file, shots=9))
    assert len(benchmarks.read(file, "arc", 2)) == 2
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(InputError, match="holds no item"):
        benchmarks.read(str(tmp_path / "empty.jsonl"), "arc", None)
    data = support.demo(64)
    asked = {"name": "a", "kind": "arc", "file": file, "shots": 1, "examples": None, "most": None}
    data["evaluation"]["benchmarks"] = [asked]
    with pytest.raises(RecipeError, match="shots need examples"):
        recipe.load(support.write(data, tmp_path))
    data["evaluation"]["benchmarks"] = [asked | {"shots": 0}] * 2
    with pytest.raises(RecipeError, match="two benchmarks of one name"):
        recipe.load(support.write(data, tmp_path))


@pytest.mark.parametrize("source", ["builtin:translation", "builtin:assistant"])
def test_demonstrations_end_where_the_model_is_to_go_on(source: str) -> None:
    rows = demonstrations.read(source)
    assert len(rows) == 3 and all(row["prompt"].endswith(":") and row["stop"] == "\n" for row in rows)
    with pytest.raises(InputError, match="cannot be read"):
        demonstrations.read("builtin:poetry")


# The harness's own tasks as configurations on local files.
HARNESS: dict[str, dict[str, Any]] = {
    "hellaswag": {
        "doc_to_text": "{{(activity_label ~ ': ' ~ ctx_a ~ ' ' ~ ctx_b.capitalize()) | replace('  ', ' ')}}",
        "doc_to_choice": "{{endings}}",
        "doc_to_target": "{{label | int}}",
    },
    "arc": {
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_choice": "{{choices.text}}",
        "doc_to_target": "{{choices.label.index(answerKey)}}",
    },
    "mmlu": {
        "description": "The following are multiple choice questions (with answers) about civil engineering.\n\n",
        "doc_to_text": "{{question.strip()}}\nA. {{choices[0]}}\nB. {{choices[1]}}\nC. {{choices[2]}}\n"
        "D. {{choices[3]}}\nAnswer:",
        "doc_to_choice": ["A", "B", "C", "D"],
        "doc_to_target": "answer",
    },
    "lambada": {
        "output_type": "loglikelihood",
        "doc_to_text": "{{text.split(' ')[:-1]|join(' ')}}",
        "doc_to_target": "{{' '+text.split(' ')[-1]}}",
        "metric_list": [{"metric": "perplexity"}, {"metric": "acc"}],
    },
}


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "shots"), [("hellaswag", 0), ("arc", 0), ("arc", 2), ("mmlu", 3), ("lambada", 0)])
def test_numbers_are_those_of_the_harness_on_the_export(tmp_path: Path, kind: str, shots: int) -> None:
    lm_eval = pytest.importorskip("lm_eval")
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    tasks = pytest.importorskip("lm_eval.tasks")
    export(network(), TOKENIZER, tmp_path / "model")
    rows = ROWS[kind]
    if kind == "hellaswag":  # the harness cleans these in Python, not in its template
        rows = [row | {"endings": [benchmarks._without_brackets(ending) for ending in row["endings"]]} for row in rows]
    file = write(tmp_path / "rows.jsonl", rows)
    config = {
        "task": f"ours_{kind}",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": file, "dev": file}},
        "test_split": "test",
        "fewshot_split": "dev",
        "fewshot_config": {"sampler": "first_n"},
        "output_type": "multiple_choice",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    } | HARNESS[kind]
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(config))
    found = lm_eval.simple_evaluate(
        model=huggingface.HFLM(pretrained=str(tmp_path / "model"), device="cpu", dtype="float32", batch_size=1),
        tasks=[f"ours_{kind}"],
        num_fewshot=shots,
        task_manager=tasks.TaskManager(include_path=str(tmp_path), include_defaults=False),
        bootstrap_iters=0,
    )
    theirs = found["results"][f"ours_{kind}"]
    ours = benchmarks.evaluate(Scorer(network(), TOKENIZER), task(kind, file, shots))
    assert ours["accuracy"] == pytest.approx(theirs["acc,none"], abs=1e-6)
    if kind == "lambada":
        assert ours["perplexity"] == pytest.approx(theirs["perplexity,none"], rel=1e-4)
    else:
        assert ours["accuracy_normalised"] == pytest.approx(theirs["acc_norm,none"], abs=1e-6)
        sample = found["samples"][f"ours_{kind}"][0]
        item = benchmarks.read(file, kind, None)[0]
        scorer = Scorer(network(), TOKENIZER)
        examples = "".join(example.as_example() for example in benchmarks.read(file, kind, shots)) if shots else ""
        mine = scorer.score([scorer.pair(item.description + examples + item.context, f" {c}") for c in item.choices])
        values = [
            float(reply[0][0]) if isinstance(reply[0], (list, tuple)) else float(reply[0]) for reply in sample["resps"]
        ]
        assert [value for value, _ in mine] == pytest.approx(values, abs=1e-4)
