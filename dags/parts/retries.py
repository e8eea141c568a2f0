"""Which errors are retried, how often and how soon: this depends on their kind, which the exit code identifies."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.providers.standard.exceptions import HITLRejectException
from airflow.sdk import RetryDecision, RetryPolicy
from airflow.sdk.exceptions import AirflowException

from dags.parts.alerts import Failed
from pipeline import errors
from pipeline.errors import CrawlToChatError

# Exit codes of errors that a retry cannot mend.
FINAL = tuple(
    kind.exit_code
    for kind in (errors.RecipeError, errors.InputError, errors.ArtifactError, errors.MachineError, errors.StageError)
)
# A storage, a server or a node that may come back: retried with exponential back-off.
LATER = (errors.StorageError.exit_code, errors.ServerError.exit_code, errors.NodeError.exit_code)
TRIES = 5
FIRST_WAIT, LONGEST_WAIT = timedelta(minutes=1), timedelta(minutes=15)
SOON = timedelta(seconds=5)


class StageFailed(AirflowException):  # type: ignore[misc]
    """A stage ended with this exit code: of `pipeline.errors`, negative for a signal, None if unknown."""

    def __init__(self, stage: str, code: int | None) -> None:
        super().__init__(f"{stage} ended with exit code {code}, see the lines above")
        self.exit_code = code


class ByKind(RetryPolicy):  # type: ignore[misc]
    """User errors are final; throttling and lost nodes are retried with back-off; killed tasks at once; others once."""

    def evaluate(self, exception: BaseException, try_number: int, max_tries: int, context: Any = None) -> RetryDecision:
        """See `RetryPolicy`."""
        code = exception.exit_code if isinstance(exception, (StageFailed, CrawlToChatError)) else 1
        if code in LATER:
            wait = min(FIRST_WAIT * 2 ** (try_number - 1), LONGEST_WAIT)
            return RetryDecision.retry(wait, f"exit code {code}: retry in {wait}")
        if code is not None and (code < 0 or code > 128):  # killed: preempted, out of memory, a node that went down
            return RetryDecision.retry(SOON, f"exit code {code}: killed, retry at once")
        if try_number == 1 and code not in FINAL and not isinstance(exception, HITLRejectException):
            return RetryDecision.retry(SOON)
        return RetryDecision.fail("a retry would not help")

    def serialize(self) -> dict[str, Any]:
        """Nothing: it has no settings."""
        return {}

    @classmethod
    def deserialize(cls, data: dict[str, Any]) -> ByKind:
        """See `serialize`."""
        return cls()


DEFAULTS = {"retries": TRIES, "retry_delay": SOON, "retry_policy": ByKind(), "on_failure_callback": Failed()}
