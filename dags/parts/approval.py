"""Approvals by a person before a run spends much: required where it exceeds a bound of the recipe's `approval` section.

A run within the bounds continues without one. Rejecting ends the run; clearing the task asks again.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from airflow.providers.standard.operators.hitl import ApprovalOperator

from dags.parts import pods
from dags.parts.alerts import ApprovalNeeded
from dags.parts.place import Place, place
from pipeline import artifact
from pipeline.artifact import Published
from pipeline.numbers import CanaryNumbers, TokenizerNumbers
from pipeline.recipe import Approval, Model, Recipe, load

_HOW = """Within the bounds of the recipe's section `approval` the run continues by itself. Beyond them it waits on the
page *Required Actions* until somebody approves or rejects. Rejecting ends the run; clearing the task asks again."""


@dataclass
class ApprovalRequest:
    """What the approver sees: figures by name, and the bounds that the run exceeds. With none, nobody is asked."""

    figures: dict[str, str] = field(default_factory=dict)
    exceeded: list[str] = field(default_factory=list)

    def table(self) -> str:
        """The figures as a Markdown table."""
        return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in self.figures.items())])


class ApproveBeyondBounds(ApprovalOperator):  # type: ignore[misc]
    """Waits for an approval if `request` finds that a bound is exceeded; else succeeds at once."""

    template_fields: Sequence[str] = ("subject", "body", "arguments")

    def __init__(self, **kwargs: Any) -> None:
        kwargs = {"doc_md": f"{type(self).__doc__}\n\n{_HOW}", "executor_config": pods.SMALL} | kwargs
        super().__init__(subject="Continue?", fail_on_reject=True, notifiers=ApprovalNeeded(), **kwargs)
        self.arguments = place("recipe", "root", "run")

    @abstractmethod
    def request(self, recipe: Recipe, at: Place) -> ApprovalRequest:
        """What the run is about to spend, against the recipe's bounds."""

    def execute(self, context: Any) -> Any:
        """Compute the request; defer to a person only if a bound is exceeded."""
        at = Place.of(self.arguments)
        request = self.request(load(at.recipe), at)
        self.log.info("%s", request.table())
        if not request.exceeded:
            self.log.info("within the bounds of the recipe: no approval needed")
            return None
        self.subject, self.body = "Continue? " + "; ".join(request.exceeded), request.table()
        return super().execute(context)


class ApproveExtract(ApproveBeyondBounds):
    """Before extract: the cost that the canary predicts, and how the crawl differs from the previous corpus."""

    def request(self, recipe: Recipe, at: Place) -> ApprovalRequest:
        """See `ApproveBeyondBounds`."""
        canary = artifact.of_run(at.storage, at.run, "canary")
        return forecast(canary, previous_canary(at, canary), recipe.approval)


class ApprovePretraining(ApproveBeyondBounds):
    """Before pretraining: its floating-point operations."""

    def request(self, recipe: Recipe, at: Place) -> ApprovalRequest:
        """See `ApproveBeyondBounds`."""
        vocabulary = TokenizerNumbers.of(artifact.of_run(at.storage, at.run, "tokenizer")).vocabulary
        tokens = recipe.pretrain.steps * recipe.pretrain.batch * recipe.pretrain.window
        flops = tokens * flops_per_token(recipe.model, vocabulary, recipe.pretrain.window)
        request = ApprovalRequest({"tokens": f"{tokens:,}", "operations": f"{flops:.2g}"})
        if flops > recipe.approval.pretrain_flops:
            bound = f"{recipe.approval.pretrain_flops:.2g}"
            request.exceeded.append(f"pretraining takes {flops:.2g} operations; more than {bound} needs approval")
        return request


def previous_canary(at: Place, canary: Published) -> Published | None:
    """The canary of the newest finished corpus in the same languages, this one's apart; None if there is none."""
    begun, finished = artifact.pointers(at.storage, "canary"), set(artifact.runs_with(at.storage, "shard"))
    for run in reversed(artifact.runs_with(at.storage, "canary")):
        (pointer,) = begun[run]
        # A canary that was removed, or that another run makes again with --force, cannot be compared with.
        if run in finished and pointer.folder != canary.folder and artifact.is_published(at.storage, pointer.folder):
            other = artifact.read(at.storage, pointer.folder)
            if languages(other) == languages(canary) and CanaryNumbers.of(other).canary_files:
                return other
    return None


def languages(canary: Published) -> list[str]:
    """The languages that a canary's filter keeps."""
    return sorted(canary.content.recipe["filter"]["languages"])


def forecast(canary: Published, previous: Published | None, bounds: Approval) -> ApprovalRequest:
    """What a canary predicts for the whole input, compared with the canary of the previous corpus."""
    numbers = CanaryNumbers.of(canary)
    request = ApprovalRequest(
        {"WARC files": f"{numbers.files:,}", "of them in the canary": f"{numbers.canary_files:,}"}
    )
    if not numbers.canary_files:
        return request
    hours = canary.manifest.run.numbers["extract_cpu_seconds"] / numbers.canary_files * numbers.files / 3600
    request.figures["core hours of extract, estimated"] = f"{hours:,.1f}"
    if hours > bounds.core_hours:
        request.exceeded.append(
            f"extract takes about {hours:,.0f} core hours; more than {bounds.core_hours:g} needs approval"
        )
    if not numbers.pages:
        request.exceeded.append("the canary has no pages")
        return request
    compare(request, canary, previous if previous and CanaryNumbers.of(previous).pages else None, bounds)
    return request


def compare(request: ApprovalRequest, canary: Published, previous: Published | None, bounds: Approval) -> None:
    """Add the canary's rates and languages to the request, and what differs too much from a `previous` canary's."""
    now, before = rates(canary), rates(previous) if previous else None
    for name, bound in (("pages kept", bounds.kept_change), ("CPU seconds per page", bounds.cost_change)):
        request.figures[name] = f"{now[name]:.4g}" + (f" (previous corpus: {before[name]:.4g})" if before else "")
        change = abs(now[name] / before[name] - 1) if before and before[name] else 0.0
        if change > bound:
            request.exceeded.append(
                f"{name}: {change:.0%} different from the previous corpus; more than {bound:.0%} needs approval"
            )
    if previous is None:
        return
    shift = language_shift(CanaryNumbers.of(canary).languages, CanaryNumbers.of(previous).languages)
    request.figures["texts in other languages than in the previous corpus"] = f"{shift:.1%}"
    if shift > bounds.language_change:
        request.exceeded.append(
            f"{shift:.0%} of the texts are in other languages than in the previous corpus; "
            f"more than {bounds.language_change:.0%} needs approval"
        )


def rates(canary: Published) -> dict[str, float]:
    """Share of pages kept, and cost, of a canary that has pages."""
    numbers = CanaryNumbers.of(canary)
    return {
        "pages kept": numbers.kept / numbers.pages,
        "CPU seconds per page": canary.manifest.run.numbers["extract_cpu_seconds"] / numbers.pages,
    }


def language_shift(now: Mapping[str, int], before: Mapping[str, int]) -> float:
    """Total variation distance of two counts of texts by language: the share that would have to change language."""
    total_now, total_before = sum(now.values()) or 1, sum(before.values()) or 1
    return sum(abs(now.get(key, 0) / total_now - before.get(key, 0) / total_before) for key in {*now, *before}) / 2


def flops_per_token(model: Model, vocabulary: int, window: int) -> float:
    """Of training, as `inference.network` counts them (PaLM, appendix B), but without norms and biases.

    Computed from the recipe alone: a DAG must not import torch.
    """
    attention = model.width * model.head_dim * 2 * (model.heads + model.kv_heads)
    mlp = model.width * model.mlp_width * (2 if model.preset == "gpt2" else 3)
    multiplied = model.layers * (attention + mlp) + vocabulary * model.width
    return float(6 * multiplied + 12 * model.layers * model.heads * model.head_dim * window)
