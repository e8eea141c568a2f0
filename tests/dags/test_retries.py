"""Which errors are retried, and after what delay."""

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
def test_user_errors_are_final(kind):
    for error in (StageFailed("x", kind.exit_code), kind("what", "remedy")):  # in a stage's process; in the task's own
        assert ByKind().evaluate(error, 1, TRIES).action is RetryAction.FAIL


@pytest.mark.parametrize("kind", [errors.StorageError, errors.ServerError, errors.NodeError])
def test_throttling_and_lost_nodes_are_retried_with_back_off(kind):
    for error in (StageFailed("x", kind.exit_code), kind("what", "remedy")):
        decisions = [ByKind().evaluate(error, number, TRIES) for number in range(1, 7)]
        assert {decision.action for decision in decisions} == {RetryAction.RETRY}
        assert [decision.retry_delay / MINUTE for decision in decisions] == [1, 2, 4, 8, 15, 15]


@pytest.mark.parametrize("code", [-9, -15, 137, 143])
def test_a_killed_stage_is_retried_at_once(code):
    for number in range(1, TRIES + 1):
        decision = ByKind().evaluate(StageFailed("x", code), number, TRIES)
        assert decision.action is RetryAction.RETRY
        assert decision.retry_delay < MINUTE


@pytest.mark.parametrize("error", [StageFailed("x", 1), StageFailed("x", None), AirflowException("x"), ValueError()])
def test_an_unknown_error_is_retried_once(error):
    actions = [ByKind().evaluate(error, number, TRIES).action for number in (1, 2)]
    assert actions == [RetryAction.RETRY, RetryAction.FAIL]


def test_a_rejection_is_final():
    assert ByKind().evaluate(HITLRejectException("no"), 1, TRIES).action is RetryAction.FAIL


@pytest.mark.parametrize("module", [backfill, corpus, crawl_to_chat, model])
def test_all_tasks_have_this_policy(module):
    for task in module.dag.tasks:
        assert isinstance(task.retry_policy, ByKind)
        assert task.retries == (0 if task.task_id == "corpus" else TRIES)  # the runs that backfill triggers have theirs
    DagSerialization.from_dict(DagSerialization.to_dict(module.dag))
