"""Every stage, once: what it is called, which file makes it, its sections of the recipe, and what it counts.

The DAGs, the terminal, the pages, the commands, the benches and the tests read their lists from here. A stage that is
added here is started, followed, counted and shown everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """One stage of a run.

    `name` is its pointer's in `runs/<run>/`, `stage` its artifacts' folder: a stage that runs several times in a run,
    as `evaluation` does, has several steps. `script`: the file that makes it, below the project. `sections`: the
    sections of the recipe that are its own, and that a form shows for it; all that decides what comes out is in
    `pipeline.command.settings`. `task`: its id in Airflow. `opens`: module:function that opens the stage of a job, and
    that a process without Spark and torch can call (`pipeline.reuse`).
    """

    name: str
    stage: str
    label: str  # as people read it
    note: str  # what it does, in a few words, for the picture of the road
    script: str
    sections: tuple[str, ...]
    task: str
    counts: bool = False  # whether its manifest counts pages that came in, stayed, and left by reason
    holds: str = ""  # what of a page its files hold, where they hold more than ids
    model: str = ""  # the model it makes, as people call it
    of: str = ""  # evaluation: the step whose model it measures
    opens: str = ""


def _corpus(name: str, label: str, note: str, holds: str = "") -> Step:
    script, opens = f"jobs/{name}.py", f"jobs.{name}:run"
    return Step(name, name, label, note, script, (name,), f"corpus.{name}", True, holds, opens=opens)


def _model(name: str, label: str, note: str, model: str, *more: str) -> Step:
    script, opens = f"training/{name}.py", f"training.launch.opening:{name}"
    return Step(name, name, label, note, script, (*more, name), f"model.{name}", model=model, opens=opens)


def _evaluation(of: str, label: str, task: str) -> Step:
    name, script = f"evaluation-{of}", "evaluation/evaluate_model.py"
    sections, opens = ("assistant", "evaluation"), "evaluation.opening:evaluation"
    return Step(name, "evaluation", label, "evaluate", script, sections, f"model.{task}", of=of, opens=opens)


CANARY = Step(
    *("canary", "canary", "Canary", "a few files", "jobs/canary.py", ("approval",), "corpus.canary"),
    opens="jobs.canary:run",
)
# From WARC files to token shards.
CORPUS = (
    _corpus("extract", "Extract", "text, scores", "captures"),
    _corpus("filter", "Filter", "language, quality"),
    _corpus("deduplicate", "Deduplicate", "exact, MinHash"),
    _corpus("redact", "Redact", "personal data", "documents"),
    _corpus("decontaminate", "Decontaminate", "test sets, take-downs"),
    Step(
        *("tokenizer", "tokenizer", "Tokenizer", "byte-level BPE"),
        *("jobs/train_tokenizer.py", ("tokenizer",), "corpus.tokenizer"),
        opens="jobs.train_tokenizer:run",
    ),
    _corpus("shard", "Shard", "token files", "documents in the shards"),
)
# From token shards to a chat model.
MODEL = (
    _model("pretrain", "Pretraining", "base model", "Base", "model"),
    _evaluation("pretrain", "Evaluation of the base model", "evaluate_base"),
    _model("sft", "Fine-tuning", "assistant", "Fine-tuned", "assistant"),
    _evaluation("sft", "Evaluation after fine-tuning", "evaluate_sft"),
    _model("rl", "Reinforcement learning", "GRPO, verifier", "Reinforced", "assistant"),
    _evaluation("rl", "Evaluation after reinforcement", "evaluate_rl"),
)
REPORT = Step("report", "report", "Report", "what happened", "web/report/", (), "report")
ROAD = (CANARY, *CORPUS, *MODEL)  # all but the report, which tells of them
STEPS = {step.name: step for step in (*ROAD, REPORT)}

# The step of a task in Airflow. Extract has further tasks, one for each batch; the corpus has a report of its own.
BY_TASK = {step.task: step.name for step in STEPS.values()} | {
    "corpus.extract_batch": "extract",
    "corpus_report": REPORT.name,
}

PAGES = tuple(step for step in ROAD if step.counts)  # the steps whose counts add up from responses to documents
MODELS = tuple(step for step in ROAD if step.model)
EVALUATIONS = {step.of: step for step in ROAD if step.of}  # by the step whose model is measured
BEFORE_RL, AFTER_RL = EVALUATIONS["sft"], EVALUATIONS["rl"]

# Sections of the recipe by stage, with those of stages that are run by hand. What decides the canary: jobs/canary.py.
SECTIONS = {step.stage: step.sections for step in ROAD} | {"memorization": ("memorization",)}


def sections(steps: Iterable[Step]) -> tuple[str, ...]:
    """The sections of the recipe that these steps have, each once, in their order."""
    return tuple(dict.fromkeys(section for step in steps for section in step.sections))


def label(name: str) -> str:
    """What people call a step; a step of another version keeps its own name."""
    return STEPS[name].label if name in STEPS else name
