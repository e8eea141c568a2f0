"""Questions to a person before a run spends much: asked where it passes a bound of the recipe's section `approval`.

What is within the bounds goes on by itself. Who rejects ends the run; clearing the task asks anew.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from airflow.providers.standard.operators.hitl import ApprovalOperator

from dags.parts.place import Place, place
from pipeline import artifact
from pipeline.artifact import Published
from pipeline.numbers import CanaryNumbers, TokenizerNumbers
from pipeline.recipe import Approval, Model, Recipe, load


@dataclass
class Question:
    """Figures for who decides, by name, and the bounds that they pass; without those there is no question."""

    figures: dict[str, str] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)

    def table(self) -> str:
        """The figures in Markdown."""
        return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in self.figures.items())])


class Ask(ApprovalOperator):  # type: ignore[misc]
    """Asks where `question` finds a reason to."""

    template_fields: Sequence[str] = ("subject", "body", "arguments")

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(subject="Go on?", fail_on_reject=True, **kwargs)
        self.arguments = place("recipe", "root", "run")

    @abstractmethod
    def question(self, recipe: Recipe, at: Place) -> Question:
        """What the run is about to spend."""

    def execute(self, context: Any) -> Any:
        """Look; ask, or go on."""
        at = Place.of(self.arguments)
        found = self.question(load(at.recipe), at)
        self.log.info("%s", found.table())
        if not found.reasons:
            self.log.info("within the bounds of the recipe: goes on by itself")
            return None
        self.subject, self.body = "Go on? " + "; ".join(found.reasons), found.table()
        return super().execute(context)


class AskForExtract(Ask):
    """Before extract: what the canary foretells, and how it differs from the corpus before."""

    def question(self, recipe: Recipe, at: Place) -> Question:
        """See `Ask`."""
        made = artifact.of_run(at.storage, at.run, "canary")
        return foretold(made, before(at, made), recipe.approval)


class AskForPretraining(Ask):
    """Before pretraining: how many operations it takes."""

    def question(self, recipe: Recipe, at: Place) -> Question:
        """See `Ask`."""
        vocabulary = TokenizerNumbers.of(artifact.of_run(at.storage, at.run, "tokenizer")).vocabulary
        tokens = recipe.pretrain.steps * recipe.pretrain.batch * recipe.pretrain.window
        flops = tokens * flops_a_token(recipe.model, vocabulary, recipe.pretrain.window)
        found = Question({"tokens": f"{tokens:,}", "operations": f"{flops:.2g}"})
        if flops > recipe.approval.pretrain_flops:
            most = f"{recipe.approval.pretrain_flops:.2g}"
            found.reasons.append(f"pretraining takes {flops:.2g} operations, {most} need no asking")
        return found


def before(at: Place, made: Published) -> Published | None:
    """The canary of the corpus in the same languages that was finished last before this one; None without one."""
    begun, finished = artifact.pointers(at.storage, "canary"), set(artifact.runs_with(at.storage, "shard"))
    for run in reversed(artifact.runs_with(at.storage, "canary")):
        (found,) = begun[run]
        # Of a canary that somebody removed, or that another run forces, nothing can be said.
        if run in finished and found.folder != made.folder and artifact.is_published(at.storage, found.folder):
            other = artifact.read(at.storage, found.folder)
            if languages(other) == languages(made) and CanaryNumbers.of(other).canary_files:
                return other
    return None


def languages(made: Published) -> list[str]:
    """What a canary's filter keeps."""
    return sorted(made.content.recipe["filter"]["languages"])


def foretold(made: Published, other: Published | None, bounds: Approval) -> Question:
    """What a canary says of the rest, against the canary of the corpus before."""
    numbers = CanaryNumbers.of(made)
    found = Question({"WARC files": f"{numbers.files:,}", "of them in the canary": f"{numbers.canary_files:,}"})
    if not numbers.canary_files:
        return found
    hours = made.manifest.run.numbers["extract_cpu_seconds"] / numbers.canary_files * numbers.files / 3600
    found.figures["core hours of extract, foretold"] = f"{hours:,.1f}"
    if hours > bounds.core_hours:
        found.reasons.append(f"extract takes about {hours:,.0f} core hours, {bounds.core_hours:g} need no asking")
    if not numbers.pages:
        found.reasons.append("the canary holds no page")
        return found
    earlier = CanaryNumbers.of(other) if other else None
    now, then = rates(made), rates(other) if other and earlier and earlier.pages else None
    shift = language_shift(numbers.languages, earlier.languages) if earlier and then else None
    for name, bound in (("pages kept", bounds.kept_change), ("CPU seconds a page", bounds.cost_change)):
        found.figures[name] = f"{now[name]:.4g}" + (f" (corpus before: {then[name]:.4g})" if then else "")
        change = abs(now[name] / then[name] - 1) if then and then[name] else 0.0
        if change > bound:
            found.reasons.append(f"{name}: {change:.0%} other than in the corpus before, {bound:.0%} need no asking")
    if shift is not None:
        found.figures["texts in other languages than in the corpus before"] = f"{shift:.1%}"
        if shift > bounds.language_change:
            most = f"{bounds.language_change:.0%}"
            found.reasons.append(f"{shift:.0%} of the texts are in other languages, {most} need no asking")
    return found


def rates(made: Published) -> dict[str, float]:
    """Of a canary with pages: share that stays, and cost."""
    numbers = CanaryNumbers.of(made)
    return {
        "pages kept": numbers.kept / numbers.pages,
        "CPU seconds a page": made.manifest.run.numbers["extract_cpu_seconds"] / numbers.pages,
    }


def language_shift(now: Mapping[str, int], then: Mapping[str, int]) -> float:
    """Total variation between two counts of texts by language: the share that would have to change its language."""
    whole, other = sum(now.values()) or 1, sum(then.values()) or 1
    return sum(abs(now.get(key, 0) / whole - then.get(key, 0) / other) for key in {*now, *then}) / 2


def flops_a_token(model: Model, vocabulary: int, window: int) -> float:
    """As `inference.network.flops_a_token` (PaLM, appendix B), from the recipe alone; norms and biases left out."""
    attention = model.width * model.head_dim * 2 * (model.heads + model.kv_heads)
    mlp = model.width * model.mlp_width * (2 if model.preset == "gpt2" else 3)
    multiplied = model.layers * (attention + mlp) + vocabulary * model.width
    return float(6 * multiplied + 12 * model.layers * model.heads * model.head_dim * window)
