"""Operators: a Spark stage and a training stage. Each succeeds only where the run's manifest says it is published."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from airflow.providers.apache.spark.operators.spark_submit import SparkSubmitOperator
from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from pipeline import artifact
from pipeline.errors import EXIT_RESUME
from pipeline.storage import Storage

HOME = Path(os.environ.get("CRAWL2CHAT_HOME", Path(__file__).resolve().parents[1]))
RANKS_VARIABLE = "CRAWL2CHAT_RANKS"  # training processes on this machine
_LONGEST_RESUME = 20  # starts of a training stage that keeps asking to be resumed
_FINAL = (2, 3, 4, 6)  # exit codes of errors that trying again cannot mend: recipe, input, artifact, machine
_GRACE = 60  # seconds between SIGTERM, on which a stage saves a checkpoint, and SIGKILL

# Where all tasks of a run find what they share; `resolve` returns them.
RECIPE, ROOT, RUN, FORCE = (
    "{{ ti.xcom_pull(task_ids='resolve')['" + key + "'] }}" for key in ("recipe", "root", "run", "force")
)


def verify(root: str, run: str, name: str, log: Any) -> None:
    """Fail unless the stage `name` of the run is published: a driver that vanished must not pass for one that ended."""
    published = artifact.of_run(Storage(root), run, name)
    counts = published.content.counts
    if counts:
        counts.check(name)
        dropped = ", ".join(f"{reason} {number}" for reason, number in counts.dropped.items())
        log.info("%s: in %d = kept %d + dropped (%s)", name, counts.in_, counts.kept, dropped or "none")
    log.info("%s: %s", name, published.folder)


class SparkStage(SparkSubmitOperator):
    """One stage of the corpus as a Spark application."""

    def __init__(self, *, stage: str, application: str, **kwargs: Any) -> None:
        self.stage = stage
        arguments = ["--recipe", RECIPE, "--root", ROOT, "--run", RUN]
        super().__init__(
            application=str(HOME / application),
            application_args=arguments,
            name=f"crawl2chat-{stage}",
            env_vars={"PYSPARK_PYTHON": sys.executable},
            **kwargs,
        )

    def execute(self, context: Any) -> None:
        """Submit, then look at what was published."""
        shared = context["ti"].xcom_pull(task_ids="resolve")
        if shared["force"]:
            self.application_args = [*self.application_args, "--force"]  # type: ignore[has-type]
        super().execute(context)
        verify(shared["root"], shared["run"], self.stage, self.log)


class ModuleStage(BaseOperator):
    """One stage as processes of this machine: training under torchrun, or a single process (`ranks=1`).

    Its exit code 85 means that it saved and wants to be started again.
    """

    template_fields: Sequence[str] = ("arguments",)

    def __init__(
        self, *, stage: str, script: str, ranks: int | None = None, options: Sequence[str] = (), **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.stage, self.script, self.ranks = stage, script, ranks
        self.arguments = ["--recipe", RECIPE, "--root", ROOT, "--run", RUN, *options]
        self._process: subprocess.Popen[str] | None = None

    def command(self, force: bool) -> list[str]:
        """The command line."""
        ranks = self.ranks or int(os.environ.get(RANKS_VARIABLE, "2"))
        launcher = [sys.executable]
        if ranks > 1:
            launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
        return [*launcher, str(HOME / self.script), *self.arguments, *(["--force"] if force else [])]

    def execute(self, context: Any) -> None:
        """Run to the end, starting again where the stage asks for it, then look at what was published."""
        shared = context["ti"].xcom_pull(task_ids="resolve")
        force = bool(shared["force"])
        for _ in range(_LONGEST_RESUME):
            code = self._run(self.command(force))
            force = False  # what an interrupted start saved is to be used
            if code != EXIT_RESUME:
                break
            self.log.info("%s saved a checkpoint and asks to be resumed", self.stage)
        if code in _FINAL:
            raise AirflowFailException(f"{self.stage} ended with exit code {code}; its last lines say why")
        if code:
            raise AirflowException(f"{self.stage} ended with exit code {code}")
        verify(shared["root"], shared["run"], self.stage, self.log)

    def _run(self, command: list[str]) -> int:
        self.log.info("%s", " ".join(command))
        # A session of its own, so that all its processes can be ended together.
        self._process = subprocess.Popen(
            command, cwd=HOME, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.log.info("%s", line.rstrip())
        return self._process.wait()

    def on_kill(self) -> None:
        """End the stage and all its processes; it may save a checkpoint first."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
