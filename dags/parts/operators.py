"""The operators: a stage by spark-submit, a stage by DeepSpeed's launcher, a stage by a plain process.

All take the same place (recipe, root, run) from the task `resolve`, and believe the manifest, not an exit code.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from airflow.exceptions import AirflowNotFoundException
from airflow.providers.apache.spark.operators.spark_submit import SparkSubmitOperator
from airflow.sdk import BaseHook, BaseOperator
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from dags.parts import links
from dags.parts.child import Child, die_with_parent
from dags.parts.jobset import JobSet
from dags.parts.place import Place, place
from dags.parts.retries import StageFailed
from pipeline import artifact
from pipeline.artifact import Published
from pipeline.errors import EXIT_RESUME, ArtifactError
from pipeline.numbers import CanaryNumbers
from pipeline.stages import CANARY, STEPS, Step

HOME = os.environ.get("CRAWL2CHAT_HOME") or str(Path(__file__).resolve().parents[2])
TRAINING_CONNECTION = "deepspeed_default"
MOST_BATCHES = 20
FILES_A_BATCH = int(os.environ.get("CRAWL2CHAT_BATCH_FILES", "100"))  # WARC files: some 14 core hours (docs/scale.md)
MAX_STARTS = 100  # of one attempt of a training stage; each start goes on where the last one saved
STOP_SECONDS = 60.0  # a rank that was asked to stop may take so long to save


class Launch(Protocol):
    """A stage that was started, here or elsewhere."""

    def wait(self, log: Callable[[str], None]) -> int:
        """Pass every line on until it ends; its exit code."""

    def ask_to_stop(self) -> None:
        """Let it save what it has, and end."""

    def stop(self, seconds: float) -> None:
        """Ask, wait so long, then end it; nothing where it has ended."""


PLACE = place("recipe", "root", "run")
# Once only: a task that is tried again is to use what its first try made.
FORCE = "{{ '--force' if params.force and ti.try_number == 1 else '' }}"


def given(arguments: Sequence[str]) -> list[str]:
    """Rendered arguments without the empty ones."""
    return [argument for argument in arguments if argument]


def published(arguments: Sequence[str], stage: str) -> Published:
    """What a stage published. Raises `AirflowException` where its run points to nothing published.

    A driver that vanished ends like one that finished, so only the manifest counts as success.
    """
    at = Place.of(arguments)
    try:
        return artifact.of_run(at.storage, at.run, stage)
    except ArtifactError as error:
        raise AirflowException(f"{stage} ended without an error, and published nothing: {error}") from error


def told(stage: str, made: Published) -> str:
    """One line on what a stage published."""
    line = f"{stage}: {made.folder}, {len(made.content.files)} files"
    if counts := made.content.counts:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(counts.dropped.items())) or "none"
        line += f"; {counts.in_} in = {counts.kept} kept + {sum(counts.dropped.values())} dropped ({reasons})"
    return line


class SparkStage(SparkSubmitOperator):  # type: ignore[misc]
    """`spark-submit` of the step's script on the connection `spark_default`, then the check that it published."""

    operator_extra_links = links.SPARK

    def __init__(self, *, step: Step, arguments: Sequence[str] = (FORCE,), **kwargs: Any) -> None:
        kwargs.setdefault("task_id", step.task.rpartition(".")[2])
        super().__init__(application=f"{HOME}/{step.script}", name=f"crawl2chat {step.name}", **kwargs)
        self.application_args: list[str] = [*PLACE, *arguments]
        self.stage = step.name

    def execute(self, context: Any) -> Any:
        """Submit, wait, check. Where Airflow's worker is killed, all of it ends, or a retry would meet what is left."""
        die_with_parent()
        links.show(self, context)
        arguments = self.application_args = given(self.application_args)
        hook = self._hook = self._get_hook()
        hook.submit = partial(hook.submit, cwd=HOME, preexec_fn=die_with_parent)  # paths in a recipe are relative to it
        try:
            super().execute(context)
        except AirflowException as error:
            process = hook._submit_sp
            raise StageFailed(self.stage, process.returncode if process else None) from error
        return self.check(arguments)

    def check(self, arguments: Sequence[str]) -> Any:
        """Believe the manifest."""
        self.log.info("%s", told(self.stage, published(arguments, self.stage)))


class Canary(SparkStage):
    """The canary; returns the batches in which the other files are to be extracted."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(step=CANARY, **kwargs)

    def check(self, arguments: Sequence[str]) -> list[list[str]]:
        """The batches: none where one application does it all, or has done."""
        made = published(arguments, self.stage)
        numbers = CanaryNumbers.of(made)
        done = artifact.is_published(made.storage, numbers.extract)
        found = [] if done else batches(numbers.files)
        self.log.info("%s files, %s in the canary; %s batches", numbers.files, numbers.canary_files, len(found))
        return found


class ExtractBatch(SparkStage):
    """A batch of the files of extract; `arguments` say which."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(step=STEPS["extract"], **kwargs)

    def check(self, arguments: Sequence[str]) -> None:
        """Believe the commit of the batch."""
        at, batch = Place.of(arguments), arguments[arguments.index("--batch") + 1]
        name = f"batch-{batch.replace('/', '-of-')}"
        found = artifact.pointer(at.storage, at.run, self.stage)
        if found is None or (found.state == "running" and not artifact.is_committed(at.storage, found.work, name)):
            raise AirflowException(f"batch {batch} of extract ended without an error, and is not done")


def batches(files: int) -> list[list[str]]:
    """Arguments of each batch: so many that each has enough to do, and that Airflow can show them."""
    count = min(MOST_BATCHES, files // FILES_A_BATCH)
    return [["--batch", f"{i}/{count}"] for i in range(1, count + 1)] if count > 1 else []


class ProcessStage(BaseOperator):  # type: ignore[misc]
    """`python -m <module>` as a child process, then the check that it published `stage`."""

    template_fields: Sequence[str] = ("arguments",)
    operator_extra_links = links.PAGE

    def __init__(self, *, stage: str, arguments: Sequence[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.stage = stage
        self.arguments = [*arguments, FORCE]
        self._launch: Launch | None = None
        self._killed = False

    def command(self) -> list[str]:
        """The command line, once the arguments are rendered."""
        return [sys.executable, "-u", *given(self.arguments)]

    def launch(self) -> Launch:
        """Start it."""
        command = self.command()
        self.log.info("%s", " ".join(command))
        return Child(command, HOME, {"PYTHONUNBUFFERED": "1"})

    def execute(self, context: Any) -> None:
        """Run until it is finished: again where it asks for it, having saved what it had."""
        die_with_parent()
        links.show(self, context)
        for _ in range(MAX_STARTS):
            self._launch = self.launch()
            try:
                code = self._launch.wait(lambda line: self.log.info("%s", line))
            finally:
                self._launch.stop(STOP_SECONDS)  # a timeout of the task arrives as an exception
            if self._killed:
                raise AirflowException(f"{self.stage} was stopped")
            if code != EXIT_RESUME:
                break
            self.log.info("%s saved what it had and stopped; starting it again", self.stage)
            self.arguments = [argument for argument in self.arguments if argument != "--force"]
        if code:
            raise StageFailed(self.stage, code)
        self.log.info("%s", told(self.stage, published(given(self.arguments), self.stage)))

    def on_kill(self) -> None:
        """Airflow's SIGTERM: ask the child to save and stop; `execute` then ends."""
        self._killed = True
        if self._launch:
            self._launch.ask_to_stop()


class TrainingStage(ProcessStage):
    """The step's script, where and with as many ranks as the extra of the connection `deepspeed_default` says.

    `{"ranks": 2, "options": ["--zero-stage", "2"]}`: here, under DeepSpeed's launcher; without it, one process.
    `{"backend": "jobset", "template": FILE, "namespace": NAME, "options": […]}`: a JobSet on Kubernetes.
    Options shape the launch. A step that measures a model is one process by itself.
    """

    operator_extra_links = links.TRAINING

    def __init__(self, *, step: Step, **kwargs: Any):
        kwargs.setdefault("task_id", step.task.rpartition(".")[2])
        of = ["--of", step.of] if step.of else []
        super().__init__(stage=step.name, arguments=[f"{HOME}/{step.script}", *of, *PLACE], **kwargs)
        self.ranks = not step.of

    def command(self) -> list[str]:
        """The launcher is what `deepspeed` itself starts on a machine, without importing torch a second time.

        Unlike torchrun it passes on the exit code of a rank, and kills ranks that do not end within 30 s.
        """
        extra = extra_of_connection() if self.ranks else {}
        ranks = int(extra.get("ranks", 1))
        if ranks == 1:
            return [*super().command(), *options(extra)]
        world = base64.urlsafe_b64encode(json.dumps({"localhost": list(range(ranks))}).encode()).decode()
        launcher = ["-m", "deepspeed.launcher.launch", f"--world_info={world}", "--master_port", str(_free_port())]
        return [sys.executable, "-u", *launcher, *given(self.arguments), *options(extra)]

    def launch(self) -> Launch:
        """On the back-end of the connection."""
        extra = extra_of_connection()
        backend = extra.get("backend", "local")
        if backend == "local":
            return super().launch()
        if backend != "jobset":
            raise AirflowFailException(f"connection {TRAINING_CONNECTION}: no back-end {backend!r}: local, jobset")
        script, *arguments = given(self.arguments)
        arguments = [os.path.relpath(script, HOME), *arguments, *(options(extra) if self.ranks else [])]
        return JobSet(Path(extra["template"]), extra["namespace"], self.stage, arguments, single=not self.ranks)


def extra_of_connection() -> dict[str, Any]:
    """Extra of the connection that says where training runs; nothing where there is none."""
    try:
        extra: dict[str, Any] = BaseHook.get_connection(TRAINING_CONNECTION).extra_dejson
    except AirflowNotFoundException:
        return {}
    return extra


def options(extra: dict[str, Any]) -> list[str]:
    """Options of a training stage's command line that shape the launch."""
    return [str(option) for option in extra.get("options", [])]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
