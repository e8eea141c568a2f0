"""The stages of a run as the live page shows them: a row for each, and of a training stage curves and samples."""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Mapping
from dataclasses import dataclass

from markupsafe import Markup

from pipeline import artifact
from pipeline.artifact import Counts, Plan, Pointer, RunState
from pipeline.numbers import progress_numbers
from pipeline.progress import Event, last_event, part_events, parts
from pipeline.stages import ROAD, STEPS
from pipeline.storage import Storage
from training import samples
from web.charts import Point
from web.report.learning import chart, loss_charts, reward_charts
from web.words import duration, shown

SILENT_SECONDS = 300.0  # without a sign of life, after which its age is shown; an evaluation may take longer
MAX_SAMPLES = 4
# Numbers of progress events that no curve shows.
_SPEEDS = ("step_seconds", "data_wait", "peak_bytes", "tflops", "mfu", "tokens_per_second")
_WHOLE_PARTS = 20  # parts of events (500 steps each) up to which a curve has each step; of more, means of `_GROUP`
_GROUP = 10
_NAMES = {"grad_norm": "gradient norm", "lr": "learning rate"}


@dataclass(frozen=True)
class Row:
    """A stage on the live page. `share` done (0…1), None if unknown.

    `state`: waiting, next, running, finished, reused, failed, or not run, where a run has failed before it.
    """

    label: str
    state: str
    share: float | None
    details: str
    seconds: float | None


def rows(storage: Storage, pointers: Mapping[str, Pointer], plan: Plan | None, at: RunState) -> list[Row]:
    """A row per stage that the run has or is to have; of a run without a plan, per stage that began."""
    listed = [step for step in ROAD if step.name in pointers or (plan and step.name in plan.steps)]
    return [row(storage, step.label, pointers.get(step.name), missing(step.name, at)) for step in listed]


def missing(step: str, at: RunState) -> str:
    """The state of a step that has no pointer."""
    if at.state == "failed":
        return "not run"
    return "next" if at.state == "waiting" and at.step == step else "waiting"


def row(storage: Storage, label: str, pointer: Pointer | None, without: str = "waiting") -> Row:
    """The row of a stage, from its pointer and its progress events."""
    if pointer is None:
        return Row(label, without, None, "", None)
    if pointer.state == "failed":
        return Row(label, "failed", None, "will be started again" if pointer.will_retry else "", pointer.seconds)
    if pointer.finished:
        if not artifact.is_published(storage, pointer.folder):  # removed, or another run makes it again with --force
            return Row(label, "finished", 1.0, "its artifact is missing at the moment", pointer.seconds)
        counts = artifact_counts(storage, pointer.folder, pointer.content_hash)
        details = f"{counts.in_:,} in, {counts.kept:,} kept" if counts else ""
        return Row(label, "reused" if pointer.state == "reused" else "finished", 1.0, details, pointer.seconds)
    event, now = last_event(storage, pointer.progress_folder), time.time()
    if event is None or event.time < pointer.started:  # it is of an earlier attempt
        return Row(label, "running", None, ", ".join(["starting", *silence(pointer.started)]), now - pointer.started)
    outlook = silence(event.time) or time_left(storage, pointer, event)  # a stage that is silent may be dead
    details = ", ".join([units(event), *outlook, *numbers_text(event)])
    return Row(label, "running", event.done / max(1, event.total), details, now - pointer.started)


@functools.lru_cache(1000)
def artifact_counts(storage: Storage, folder: str, content_hash: str) -> Counts | None:
    """The counts of an artifact. Cached: a manifest may list 90,000 files, too many to read every two seconds."""
    return artifact.read(storage, folder).content.counts


def units(event: Event) -> str:
    """How much is done: `3 of 5 parts`."""
    return f"{event.done:,} of {event.total:,} {event.unit}{'s' * (event.total != 1)}"


def numbers_text(event: Event) -> list[str]:
    """The main numbers of an event, each with its name."""
    numbers = progress_numbers(event.numbers, *_NAMES)
    return [f"{_NAMES.get(name, name.replace('_', ' '))} {shown(value)}" for name, value in numbers.items()]


def silence(since: float) -> list[str]:
    """How long ago the last sign was, where that is long: a process may have died without a word."""
    age = time.time() - since
    return [f"last sign {duration(age)} ago"] if age > SILENT_SECONDS else []


def time_left(storage: Storage, pointer: Pointer, last: Event) -> list[str]:
    """About how long the stage still takes, by the speed of its newest events; nothing before there are two."""
    names = parts(storage, pointer.progress_folder)
    newest = [event for event in part_events(storage, names[-1]) if event.time >= pointer.started]
    if not newest or newest[-1].done <= newest[0].done:
        return []
    seconds = (newest[-1].time - newest[0].time) / (newest[-1].done - newest[0].done) * (last.total - last.done)
    return [f"about {duration(seconds)} left"] if seconds >= 1 else []


def curves(storage: Storage, pointer: Pointer) -> dict[str, list[Point]]:
    """(step, value) by number; the steps that a killed attempt lost give way to those of the next attempt."""
    names = parts(storage, pointer.progress_folder)
    group = 1 if len(names) <= _WHOLE_PARTS else _GROUP
    found: dict[str, list[Point]] = {}
    for name in names:
        # Only the newest part still grows; the others are read once per attempt.
        read = part_curves if name == names[-1] else complete_curves
        first, by_key = read(storage, name, pointer.started, group)
        for curve in found.values():
            while curve and curve[-1][0] >= first:
                curve.pop()
        for key, points in by_key.items():
            found.setdefault(key, []).extend(points)
    return found


def part_curves(storage: Storage, name: str, _started: float, group: int) -> tuple[int, dict[str, list[Point]]]:
    """The first step of one file of progress events, and its curves; a step that was skipped has no loss."""
    by_key: dict[str, list[Point]] = {}
    first = 0
    for event in part_events(storage, name):
        first = first or event.done
        for key, value in event.numbers.items():
            if key not in _SPEEDS and isinstance(value, int | float):
                by_key.setdefault(key, []).append((float(event.done), float(value)))
    return first, {key: _means(points, group) for key, points in by_key.items()}


# A part holds 500 events; this many parts are a run of half a million steps.
complete_curves = functools.lru_cache(1000)(part_curves)


def _means(points: list[Point], group: int) -> list[Point]:
    """Means of so many neighbours. What is measured now and then has too few points to be thinned."""
    if len(points) <= 10 * group or group == 1:
        return points
    batches = [points[i : i + group] for i in range(0, len(points), group)]
    return [(batch[-1][0], sum(y for _, y in batch) / len(batch)) for batch in batches]


def charts(storage: Storage, pointers: Mapping[str, Pointer]) -> list[Markup]:
    """The curves of each training stage that is running: of reinforcement learning its reward, of others the loss."""
    drawn: list[Markup] = []
    for pointer in pointers.values():
        if pointer.state != "running" or pointer.name not in STEPS or not STEPS[pointer.name].model:
            continue
        by_key = curves(storage, pointer)
        steps = [{"step": step, key: value} for key, points in by_key.items() for step, value in points]
        drawn += reward_charts(steps) if "reward" in by_key else loss_charts(steps, {})
        drawn.append(chart(steps, "Gradient norm", "before clipping", {"each step": "grad_norm"}))
        drawn.append(chart(steps, "Learning rate", "", {"each step": "lr"}))
    return [chart for chart in drawn if chart]


def last_samples(storage: Storage, run: str, pointers: Mapping[str, Pointer]) -> list[dict[str, str]]:
    """What the model that is being pretrained said last, a row per prompt: `step`, `prompt`, `text`."""
    pointer = pointers.get("pretrain")
    if pointer is None or pointer.state != "running" or not storage.exists(f"{pointer.work}/{samples.SAMPLES}"):
        return []
    newest = {row["prompt"]: row for row in samples.read(storage, run)}
    return list(itertools.islice(newest.values(), MAX_SAMPLES))
