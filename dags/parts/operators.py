"""The operators: a stage run by spark-submit, by DeepSpeed's launcher, or as a plain process.

All get recipe, root and run from the task `resolve`. A stage has succeeded when its manifest exists: an exit code alone
is not believed.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from airflow.exceptions import AirflowNotFoundException
from airflow.providers.apache.spark.operators.spark_submit import SparkSubmitOperator
from airflow.sdk import BaseHook, BaseOperator
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

from dags.parts import documents, failures, levels, links, pods, reuse, spark_submit
from dags.parts.child import Child, die_with_parent
from dags.parts.jobset import JobSet
from dags.parts.place import Place, place
from dags.parts.retries import StageFailed
from pipeline import artifact
from pipeline.artifact import Published
from pipeline.errors import EXIT_RESUME, ArtifactError
from pipeline.numbers import CanaryNumbers
from pipeline.stages import CANARY, REPORT, STEPS, Step

HOME = os.environ.get("CRAWL2CHAT_HOME") or str(Path(__file__).resolve().parents[2])
TRAINING_CONNECTION = "deepspeed_default"
MAX_BATCHES = 20  # mapped tasks that Airflow's pages still show well
FILES_PER_BATCH = int(os.environ.get("CRAWL2CHAT_BATCH_FILES", "100"))  # some 14 core hours (docs/scale.md)
MAX_STARTS = 100  # of one attempt of a training stage; each continues from the checkpoint of the one before
STOP_SECONDS = 60.0  # for a rank to save a checkpoint after SIGTERM


class Launch(Protocol):
    """A stage that was started, as a process here or as a JobSet."""

    def wait(self, log: Callable[[str], None]) -> int:
        """Pass every line of its output to `log` until it ends; returns its exit code."""

    def request_stop(self) -> None:
        """Let it save a checkpoint and end; does not wait for that."""

    def stop(self, seconds: float) -> None:
        """Request a stop, wait at most `seconds`, then kill it; does nothing if it has ended."""


PLACE = place("recipe", "root", "run")
# On the first try only: a retry continues from what the first try made.
FORCE = "{{ '--force' if params.force and ti.try_number == 1 else '' }}"


def non_empty(arguments: Sequence[str]) -> list[str]:
    """Rendered arguments without those that are empty, as `FORCE` may be."""
    return [argument for argument in arguments if argument]


def published(arguments: Sequence[str], stage: str) -> Published:
    """The artifact that a stage published. Raises `AirflowException` if there is none.

    spark-submit may exit with 0 after its driver has vanished, so only the manifest counts as success.
    """
    at = Place.of(arguments)
    try:
        return artifact.of_run(at.storage, at.run, stage)
    except ArtifactError as error:
        raise AirflowException(f"{stage} ended without an error, but published nothing: {error}") from error


def summary(stage: str, output: Published) -> str:
    """One line for the log about the artifact of a stage: folder, files, counts."""
    return f"{stage}: {output.summary()}"


class SparkStage(SparkSubmitOperator):  # type: ignore[misc]
    """Runs the step's script by `spark-submit` on the connection `spark_default`, then checks that it published."""

    operator_extra_links = links.SPARK
    reusable = True  # whether it is found out first if this is published

    def __init__(self, *, step: Step, arguments: Sequence[str] = (FORCE,), **kwargs: Any) -> None:
        kwargs = {"task_id": step.task.rpartition(".")[2], "doc_md": documents.of_step(step)} | kwargs
        super().__init__(application=f"{HOME}/{step.script}", name=f"crawl2chat {step.name}", **kwargs)
        self.application_args: list[str] = [*PLACE, *arguments]
        self.stage = step.name

    def execute(self, context: Any) -> Any:
        """Submit, wait, check. If Airflow's worker is killed, the driver ends too: a retry must not run beside it."""
        die_with_parent()
        links.push(self, context)
        arguments = self.application_args = non_empty(self.application_args)
        if self.reusable and reuse.published(self.stage, arguments, HOME, self.log.info):
            return self.check(arguments)
        # Paths in a recipe are relative to HOME.
        spark_submit.submit(self, context, self.stage, cwd=HOME, preexec_fn=die_with_parent)
        return self.check(arguments)

    def on_kill(self) -> None:
        """Called on Airflow's SIGTERM: ends the driver."""
        super().on_kill()
        failures.stopped(self.application_args, self.stage)

    def check(self, arguments: Sequence[str]) -> Any:
        """Check that the manifest exists; subclasses check and return more."""
        self.log.info("%s", summary(self.stage, published(arguments, self.stage)))


class Canary(SparkStage):
    """The canary; returns the batches in which the other files will be extracted."""

    reusable = False  # it lists the input, which is 90,000 requests for a crawl: not twice

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(step=CANARY, **kwargs)

    def check(self, arguments: Sequence[str]) -> list[list[str]]:
        """The batches: none if the input is small, or if extract has published already."""
        canary = published(arguments, self.stage)
        numbers = CanaryNumbers.of(canary)
        done = artifact.is_published(canary.storage, numbers.extract)
        of_extract = [] if done else batches(numbers.files)
        self.log.info("%s files, %s in the canary; %s batches", numbers.files, numbers.canary_files, len(of_extract))
        return of_extract


class ExtractBatch(SparkStage):
    """Extract of one batch of the files; `arguments` are `--batch I/N`."""

    reusable = False  # a batch publishes nothing; once extract is published the canary returns none

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(step=STEPS["extract"], **kwargs)

    def check(self, arguments: Sequence[str]) -> None:
        """Check that the batch was committed, or all of extract published."""
        at, batch = Place.of(arguments), arguments[arguments.index("--batch") + 1]
        name = f"batch-{batch.replace('/', '-of-')}"
        pointer = artifact.pointer(at.storage, at.run, self.stage)
        stage_done = pointer is not None and pointer.finished
        if not stage_done and not (pointer and artifact.is_committed(at.storage, pointer.work, name)):
            raise AirflowException(f"batch {batch} of extract ended without an error, but was not committed")


def batches(files: int) -> list[list[str]]:
    """Arguments of each batch: at least `FILES_PER_BATCH` files each, at most `MAX_BATCHES`, none for a single one."""
    count = min(MAX_BATCHES, files // FILES_PER_BATCH)
    return [["--batch", f"{i}/{count}"] for i in range(1, count + 1)] if count > 1 else []


class ProcessStage(BaseOperator):  # type: ignore[misc]
    """Runs `python` with these arguments as a child process, then checks that it published `stage`."""

    template_fields: Sequence[str] = ("arguments",)
    operator_extra_links = links.PAGE

    def __init__(self, *, stage: str, arguments: Sequence[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.stage = stage
        self.arguments = [*arguments, FORCE]
        self._launch: Launch | None = None
        self._killed = False

    def command(self) -> list[str]:
        """The command line; to be called when the arguments are rendered."""
        return [sys.executable, "-u", *non_empty(self.arguments)]

    def launch(self) -> Launch:
        """Start the child process."""
        command = self.command()
        self.log.info("%s", " ".join(command))
        return Child(command, HOME, {"PYTHONUNBUFFERED": "1"})

    def execute(self, context: Any) -> None:
        """Run until the stage has finished; start it again each time it saved a checkpoint and asks to be resumed."""
        die_with_parent()
        links.push(self, context)
        for _ in range(MAX_STARTS):
            self._launch = self.launch()
            try:
                code = self._launch.wait(levels.logger(self.log))
            finally:
                self._launch.stop(STOP_SECONDS)  # a timeout of the task is raised as an exception here
            if self._killed:
                raise AirflowException(f"{self.stage} was stopped")
            if code != EXIT_RESUME:
                break
            self.log.info("%s saved a checkpoint and stopped; starting it again", self.stage)
            self.arguments = [argument for argument in self.arguments if argument != "--force"]
        if code:
            raise StageFailed(self.stage, code)
        self.log.info("%s", summary(self.stage, published(non_empty(self.arguments), self.stage)))

    def on_kill(self) -> None:
        """Called on Airflow's SIGTERM: lets the stage save a checkpoint and stop, whereupon `execute` ends."""
        self._killed = True
        if self._launch:
            self._launch.request_stop()
            failures.stopped(self.arguments, self.stage)  # now: Airflow may kill this process before the stage ends


class Report(ProcessStage):
    """Makes the run's report, also of a run that failed; skipped where `resolve` has not even begun the run."""

    def __init__(self, **kwargs: Any) -> None:
        where = [f"{{{{ (ti.xcom_pull(task_ids='resolve') or {{}}).get('{key}', '') }}}}" for key in ("root", "run")]
        arguments = ["-m", "web.report", "--root", where[0], "--run", where[1]]
        kwargs = {"doc_md": documents.of_step(REPORT), "executor_config": pods.SMALL} | kwargs
        super().__init__(stage=REPORT.name, arguments=arguments, **kwargs)

    def execute(self, context: Any) -> None:
        """See `ProcessStage`."""
        if not Place.of(self.arguments).run:
            raise AirflowSkipException("the recipe was not resolved: there is nothing to report")
        super().execute(context)


class TrainingStage(ProcessStage):
    """Runs the step's script where, and with as many ranks, as the extra of the connection `deepspeed_default` says.

    `{"ranks": 2, "options": ["--zero-stage", "2"]}`: here, by DeepSpeed's launcher; without an extra, as one process.
    `{"backend": "jobset", "template": FILE, "namespace": NAME, "options": […]}`: as a JobSet on Kubernetes.
    `options` are passed to the script. A step that measures a model always is one process, without options.
    """

    operator_extra_links = links.TRAINING

    def __init__(self, *, step: Step, **kwargs: Any):
        task_id, document = step.task.rpartition(".")[2], documents.of_step(step)
        kwargs = {"task_id": task_id, "doc_md": document, "executor_config": pods.TRAINING} | kwargs
        of = ["--of", step.of] if step.of else []
        super().__init__(stage=step.name, arguments=[f"{HOME}/{step.script}", *of, *PLACE], **kwargs)
        self.ranks = not step.of

    def execute(self, context: Any) -> None:
        """See `ProcessStage`; nothing is launched for what is published.

        A JobSet looks for itself: the libraries of its image, not of this one, are part of the fingerprint.
        """
        die_with_parent()
        here = extra_of_connection().get("backend", "local") == "local"
        if here and reuse.published(self.stage, non_empty(self.arguments), HOME, self.log.info):
            links.push(self, context)
        else:
            super().execute(context)

    def command(self) -> list[str]:
        """The launcher that `deepspeed` itself starts on each machine; `deepspeed` would import torch once more.

        Unlike torchrun it passes on the exit code of a rank, and kills ranks that do not end within 30 s.
        """
        extra = extra_of_connection() if self.ranks else {}
        ranks = int(extra.get("ranks", 1))
        if ranks == 1:
            return [*super().command(), *options(extra)]
        world = base64.urlsafe_b64encode(json.dumps({"localhost": list(range(ranks))}).encode()).decode()
        launcher = ["-m", "deepspeed.launcher.launch", f"--world_info={world}", "--master_port", str(_free_port())]
        return [sys.executable, "-u", *launcher, *non_empty(self.arguments), *options(extra)]

    def launch(self) -> Launch:
        """Start it on the back-end of the connection."""
        extra = extra_of_connection()
        backend = extra.get("backend", "local")
        if backend == "local":
            if self.ranks and int(extra.get("ranks", 1)) > 1:
                self._prebuild()
            return super().launch()
        if backend != "jobset":
            raise AirflowFailException(f"connection {TRAINING_CONNECTION}: back-end {backend!r} is not local or jobset")
        script, *arguments = non_empty(self.arguments)
        arguments = [os.path.relpath(script, HOME), *arguments, *(options(extra) if self.ranks else [])]
        return JobSet(Path(extra["template"]), extra["namespace"], self.stage, arguments, single=not self.ranks)

    def _prebuild(self) -> None:
        """Build what several ranks share unless it is built, and remove the lock of a build that was killed."""
        child = Child([sys.executable, "-u", "-m", "training.launch.prebuild"], HOME, {})
        if code := child.wait(levels.logger(self.log)):
            raise StageFailed(self.stage, code)


def extra_of_connection() -> dict[str, Any]:
    """Extra of the connection `deepspeed_default`; empty if there is no such connection."""
    try:
        extra: dict[str, Any] = BaseHook.get_connection(TRAINING_CONNECTION).extra_dejson
    except AirflowNotFoundException:
        return {}
    return extra


def options(extra: dict[str, Any]) -> list[str]:
    """The extra's options for the command line of a training stage: `--zero-stage` and the like."""
    return [str(option) for option in extra.get("options", [])]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
