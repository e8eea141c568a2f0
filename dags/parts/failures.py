"""A task that fails is recorded in its run, so that pages, terminal and report say what happened and what to do.

A stage records its own errors (`pipeline.command.recording`). Here they get the address of Airflow's log; and what a
stage could not record, since its process was killed or never began, is recorded for it. Tasks that are no stage, such
as `resolve` and the approvals, are recorded under their task id.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from typing import Any

from airflow.providers.standard.exceptions import HITLRejectException

from dags.parts.alerts import Failed
from dags.parts.place import Place
from dags.parts.retries import DEFAULTS, StageFailed
from pipeline import artifact, errors
from pipeline.command import described
from pipeline.stages import BY_TASK, STEPS, label
from pipeline.storage import Storage

_SEE_LOG = "read its log, which says more; then clear the task"
_CONTINUES = "; started again, the stage continues with what it has committed"


def on_failure(context: Any) -> None:
    """Record that the task of `context` failed for good."""
    record(context, will_retry=False)


def on_retry(context: Any) -> None:
    """Record that the task of `context` failed, and that Airflow will start it again."""
    record(context, will_retry=True)


def on_execute(context: Any) -> None:
    """Forget an earlier failure of a task that is no stage: a stage overwrites its pointer itself."""
    name = pointer_name(context)
    if name not in STEPS:
        storage, run = place_of(context)
        storage.remove(f"runs/{run}/{name}.json")


def record(context: Any, will_retry: bool) -> None:
    """Complete what the stage recorded in this try, or record it where the stage did not."""
    task, name = context["ti"], pointer_name(context)
    storage, run = place_of(context)
    to = artifact.pointer(storage, run, name)
    began = task.start_date.timestamp()
    if to is None or to.state != "failed" or to.ended < began:
        to = artifact.fail(storage, run, name, *cause(context.get("exception"), name))
    more = {"log": str(task.log_url), "will_retry": will_retry}
    artifact.write_pointer(storage, run, to.model_copy(update=more))


def stopped(arguments: Sequence[str], stage: str) -> None:
    """Record that Airflow stopped a stage; its process may end without another word."""
    at = Place.of(arguments)
    artifact.fail(
        at.storage, at.run, stage, f"{label(stage)} was stopped in Airflow", f"clear the task to go on{_CONTINUES}"
    )


def pointer_name(context: Any) -> str:
    """The name under which the task's failure is recorded: its step's, or else its own id."""
    task_id: str = context["ti"].task_id
    return BY_TASK.get(task_id, task_id)


def place_of(context: Any) -> tuple[Storage, str]:
    """Root and run of a task. `resolve` says where the run is; before it has, the form does."""
    where = context["ti"].xcom_pull(task_ids="resolve") or {}
    root, run = where.get("root") or context["params"]["root"], where.get("run") or context["ti"].run_id
    return Storage(root), artifact.run_name(run)


def cause(error: BaseException | None, name: str) -> tuple[str, str]:
    """What happened, and the remedy, as far as the end of the process tells."""
    of = label(name)
    if error is None:
        return f"{of} ended without an error message", _SEE_LOG
    if isinstance(error, HITLRejectException):
        return f"{of}: a person rejected it", "clear the task to be asked again"
    if not isinstance(error, StageFailed):
        return described(error)
    number = signal_of(error.exit_code)
    if number == signal.SIGKILL:
        return (
            f"{of} was killed (SIGKILL, exit code {error.exit_code}): it ran out of memory, or its machine went away",
            "give it more memory, or let it use less: fewer cores for Spark, a smaller --micro-batch for training"
            + _CONTINUES,
        )
    if number:
        return f"{of} was ended by {signal.Signals(number).name} (exit code {error.exit_code})", _SEE_LOG + _CONTINUES
    kinds = {kind.exit_code: kind.__name__ for kind in errors.kinds()}
    kind = f", {kinds[error.exit_code]}" if error.exit_code in kinds else ""
    return f"{of} ended with exit code {error.exit_code}{kind}, before it could record why", _SEE_LOG


def signal_of(code: int | None) -> int:
    """The signal that ended a process with this exit code, or 0.

    Python reports it negative, a shell and a container as 128 + signal, and DeepSpeed's launcher, which exits with its
    rank's negative code, as 256 - signal.
    """
    if code is None or code == errors.EXIT_RESUME:
        return 0
    number = -code if code < 0 else 256 - code if code > 192 else code - 128
    return number if number in {one.value for one in signal.Signals} else 0


# Of DAGs whose tasks belong to one run below a root.
OF_RUN = DEFAULTS | {
    "on_failure_callback": [on_failure, Failed()],  # recorded first: the message links to the page that shows it
    "on_retry_callback": on_retry,
    "on_execute_callback": on_execute,
}
