"""The operators: a stage by spark-submit, a stage by DeepSpeed's launcher, a stage by a plain process.

All take the same place (recipe, root, run) from the task `resolve`, and believe the manifest, not an exit code.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from airflow.exceptions import AirflowNotFoundException
from airflow.providers.apache.spark.operators.spark_submit import SparkSubmitOperator
from airflow.sdk import BaseHook, BaseOperator
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from dags.child import Child
from pipeline import artifact
from pipeline.errors import EXIT_RESUME, CrawlToChatError
from pipeline.storage import Storage

HOME = os.environ.get("CRAWL2CHAT_HOME") or str(Path(__file__).resolve().parents[1])
TRAINING_CONNECTION = "deepspeed_default"
MAX_STARTS = 100  # of one attempt of a training stage; each start goes on where the last one saved
STOP_SECONDS = 60.0  # a rank that was asked to stop may take so long to save


def place(*keys: str) -> list[str]:
    """Templates of the command line arguments that say where a run lies: `--recipe`, `--root`, `--run`."""
    return [part for key in keys for part in (f"--{key}", f"{{{{ ti.xcom_pull(task_ids='resolve')['{key}'] }}}}")]


PLACE = place("recipe", "root", "run")
# Once only: a task that is tried again is to use what its first try made.
FORCE = "{{ '--force' if params.force and ti.try_number == 1 else '' }}"
FINAL = (2, 3, 4, 6, 7)  # exit codes of our errors that trying again cannot mend (5: a storage may come back)


def given(arguments: Sequence[str]) -> list[str]:
    """Rendered arguments without the empty ones."""
    return [argument for argument in arguments if argument]


def check_published(arguments: Sequence[str], stage: str) -> str:
    """One line on what a stage published. Raises `AirflowException` where its run points to nothing published.

    A driver that vanished ends like one that finished, so only the manifest counts as success.
    """
    root, run = (arguments[arguments.index(flag) + 1] for flag in ("--root", "--run"))
    storage = Storage(root)
    try:
        made = artifact.of_run(storage, run, stage)
    except CrawlToChatError as error:
        raise AirflowException(f"{stage} ended without an error, and published nothing: {error}") from error
    told = f"{stage}: {made.folder}, {len(made.content.files)} files"
    if counts := made.content.counts:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(counts.dropped.items())) or "none"
        told += f"; {counts.in_} in = {counts.kept} kept + {sum(counts.dropped.values())} dropped ({reasons})"
    return told


def failed(stage: str, code: int | None) -> AirflowException:
    """What an exit code means: most errors of ours will not go away by trying again."""
    if code in FINAL:
        return AirflowFailException(f"{stage} cannot be built, see the error above (exit code {code})")
    return AirflowException(f"{stage} ended with exit code {code}")


class SparkStage(SparkSubmitOperator):  # type: ignore[misc]
    """`spark-submit jobs/<script>` on the connection `spark_default`, then the check that it published `stage`."""

    def __init__(self, *, script: str, stage: str, **kwargs: Any) -> None:
        super().__init__(
            application=f"{HOME}/jobs/{script}",
            name=f"crawl2chat {stage}",
            **kwargs,
        )
        self.application_args: list[str] = [*PLACE, FORCE]
        self.stage = stage

    def execute(self, context: Any) -> None:
        """Submit, wait, check."""
        arguments = self.application_args = given(self.application_args)
        os.chdir(HOME)  # paths in a recipe are relative to it; the provider takes no folder
        try:
            super().execute(context)
        except AirflowException as error:
            process = self._hook._submit_sp if self._hook else None
            raise failed(self.stage, process.returncode if process else None) from error
        self.log.info("%s", check_published(arguments, self.stage))


class ProcessStage(BaseOperator):  # type: ignore[misc]
    """`python -m <module>` as a child process, then the check that it published `stage`."""

    template_fields: Sequence[str] = ("arguments",)

    def __init__(self, *, stage: str, arguments: Sequence[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.stage = stage
        self.arguments = [*arguments, FORCE]
        self._child: Child | None = None
        self._killed = False

    def command(self) -> list[str]:
        """The command line, once the arguments are rendered."""
        return [sys.executable, "-u", *given(self.arguments)]

    def execute(self, context: Any) -> None:
        """Run until it is finished: again where it asks for it, having saved what it had."""
        for _ in range(MAX_STARTS):
            command = self.command()
            self.log.info("%s", " ".join(command))
            self._child = Child(command, HOME, {"PYTHONUNBUFFERED": "1"})
            try:
                code = self._child.wait(lambda line: self.log.info("%s", line))
            finally:
                self._child.stop(STOP_SECONDS)  # a timeout of the task arrives as an exception
            if self._killed:
                raise AirflowException(f"{self.stage} was stopped")
            if code != EXIT_RESUME:
                break
            self.log.info("%s saved what it had and stopped; starting it again", self.stage)
            self.arguments = [argument for argument in self.arguments if argument != "--force"]
        if code:
            raise failed(self.stage, code)
        self.log.info("%s", check_published(given(self.arguments), self.stage))

    def on_kill(self) -> None:
        """Airflow's SIGTERM: ask the child to save and stop; `execute` then ends."""
        self._killed = True
        if self._child:
            self._child.ask_to_stop()


class TrainingStage(ProcessStage):
    """`training/<script>` under DeepSpeed's launcher, with as many ranks as the connection `deepspeed_default` says.

    The connection's extra is `{"ranks": 2}`; without it, and where `ranks` is False, one process runs by itself.
    """

    def __init__(self, *, script: str, stage: str, arguments: Sequence[str] = (), ranks: bool = True, **kwargs: Any):
        super().__init__(stage=stage, arguments=[f"{HOME}/training/{script}", *arguments, *PLACE], **kwargs)
        self.ranks = ranks

    def command(self) -> list[str]:
        """The launcher is what `deepspeed` itself starts on a machine, without importing torch a second time.

        Unlike torchrun it passes on the exit code of a rank, and kills ranks that do not end within 30 s.
        """
        ranks = ranks_of_connection() if self.ranks else 1
        if ranks == 1:
            return super().command()
        world = base64.urlsafe_b64encode(json.dumps({"localhost": list(range(ranks))}).encode()).decode()
        launcher = ["-m", "deepspeed.launcher.launch", f"--world_info={world}", "--master_port", str(_free_port())]
        return [sys.executable, "-u", *launcher, *given(self.arguments)]


def ranks_of_connection() -> int:
    """Ranks of a training stage, from the connection's extra."""
    try:
        return int(BaseHook.get_connection(TRAINING_CONNECTION).extra_dejson.get("ranks", 1))
    except AirflowNotFoundException:
        return 1


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
