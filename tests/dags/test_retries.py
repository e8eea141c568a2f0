"""What is tried again: by the kind of error, and with the wait that it needs."""

from __future__ import annotations

from datetime import timedelta

import pytest
from airflow.providers.standard.exceptions import HITLRejectException
from airflow.sdk import RetryAction
from airflow.sdk.exceptions import AirflowException
from airflow.serialization.serialized_objects import DagSerialization

from dags import backfill, corpus, crawl_to_chat, model
from dags.parts.retries import TRIES, ByKind, StageFailed
from pipeline import errors

MINUTE = timedelta(minutes=1)


@pytest.mark.parametrize(
    "kind", [errors.RecipeError, errors.InputError, errors.ArtifactError, errors.MachineError, errors.StageError]
)
def test_what_is_wrong_fails_at_once(kind):
    for error in (StageFailed("x", kind.exit_code), kind("what", "remedy")):  # of a stage; of a task in its own process
        assert ByKind().evaluate(error, 1, TRIES).action is RetryAction.FAIL


@pytest.mark.parametrize("kind", [errors.StorageError, errors.ServerError, errors.NodeError])
def test_what_throttles_or_was_lost_is_tried_again_and_later_each_time(kind):
    for error in (StageFailed("x", kind.exit_code), kind("what", "remedy")):
        found = [ByKind().evaluate(error, number, TRIES) for number in range(1, 7)]
        assert {decision.action for decision in found} == {RetryAction.RETRY}
        assert [decision.retry_delay / MINUTE for decision in found] == [1, 2, 4, 8, 15, 15]


@pytest.mark.parametrize("code", [-9, -15, 137, 143])
def test_what_was_killed_goes_on_at_once(code):
    for number in range(1, TRIES + 1):
        decision = ByKind().evaluate(StageFailed("x", code), number, TRIES)
        assert decision.action is RetryAction.RETRY
        assert decision.retry_delay < MINUTE


@pytest.mark.parametrize("error", [StageFailed("x", 1), StageFailed("x", None), AirflowException("x"), ValueError()])
def test_an_error_that_nobody_knows_has_one_more_try(error):
    actions = [ByKind().evaluate(error, number, TRIES).action for number in (1, 2)]
    assert actions == [RetryAction.RETRY, RetryAction.FAIL]


def test_who_rejects_is_not_asked_again():
    assert ByKind().evaluate(HITLRejectException("no"), 1, TRIES).action is RetryAction.FAIL


@pytest.mark.parametrize("module", [backfill, corpus, crawl_to_chat, model])
def test_all_tasks_keep_to_it(module):
    for task in module.dag.tasks:
        assert isinstance(task.retry_policy, ByKind)
        assert task.retries == (0 if task.task_id == "corpus" else TRIES)  # the runs that backfill triggers have theirs
    DagSerialization.from_dict(DagSerialization.to_dict(module.dag))
