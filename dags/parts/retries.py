"""What is tried again after an error, how often and how soon: by its kind, which its exit code tells."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.providers.standard.exceptions import HITLRejectException
from airflow.sdk import RetryDecision, RetryPolicy
from airflow.sdk.exceptions import AirflowException

from pipeline import errors
from pipeline.errors import CrawlToChatError

# Exit codes of errors that trying again cannot mend: recipe, input, artifact, machine, stage.
FINAL = tuple(
    kind.exit_code
    for kind in (errors.RecipeError, errors.InputError, errors.ArtifactError, errors.MachineError, errors.StageError)
)
# A storage, a server or a node that comes back: with longer and longer waits.
LATER = (errors.StorageError.exit_code, errors.ServerError.exit_code, errors.NodeError.exit_code)
TRIES = 5
FIRST_WAIT, LONGEST_WAIT = timedelta(minutes=1), timedelta(minutes=15)
SOON = timedelta(seconds=5)


class StageFailed(AirflowException):  # type: ignore[misc]
    """A stage ended with this exit code: of ours, negative for a signal, None where nobody knows."""

    def __init__(self, stage: str, code: int | None) -> None:
        super().__init__(f"{stage} ended with exit code {code}, see the lines above")
        self.exit_code = code


class ByKind(RetryPolicy):  # type: ignore[misc]
    """Final: what is wrong. What throttles or was lost comes back; what was killed goes on; all else: one more try."""

    def evaluate(self, exception: BaseException, try_number: int, max_tries: int, context: Any = None) -> RetryDecision:
        """See `RetryPolicy`."""
        code = exception.exit_code if isinstance(exception, (StageFailed, CrawlToChatError)) else 1
        if code in LATER:
            wait = min(FIRST_WAIT * 2 ** (try_number - 1), LONGEST_WAIT)
            return RetryDecision.retry(wait, f"exit code {code}: tried again in {wait}")
        if code is not None and (code < 0 or code > 128):  # killed: preempted, out of memory, a node that went down
            return RetryDecision.retry(SOON, f"exit code {code}: it was killed, and goes on")
        if try_number == 1 and code not in FINAL and not isinstance(exception, HITLRejectException):
            return RetryDecision.retry(SOON)
        return RetryDecision.fail("another try would not help")

    def serialize(self) -> dict[str, Any]:
        """Nothing to keep."""
        return {}

    @classmethod
    def deserialize(cls, data: dict[str, Any]) -> ByKind:
        """See `serialize`."""
        return cls()


DEFAULTS = {"retries": TRIES, "retry_delay": SOON, "retry_policy": ByKind()}
