"""A form over several crawls becomes a run of `corpus` each."""

from __future__ import annotations

import pytest
from airflow.sdk.exceptions import ParamValidationError
from airflow.serialization.serialized_objects import DagSerialization

from dags import backfill, corpus

CRAWLS = ["CC-MAIN-2025-05", "CC-MAIN-2025-08"]


def test_each_crawl_is_a_run_with_the_form_of_all():
    filled = {"crawls": CRAWLS, "recipe": "r.yaml", "root": "/data", "force": False, "max_warcs": 3, "seed": None}
    first, second = backfill.runs.function(filled, "manual__1")
    assert first["trigger_run_id"] == "manual__1__CC-MAIN-2025-05"
    assert second["conf"] == {
        "recipe": "r.yaml",
        "root": "/data",
        "force": False,
        "max_warcs": 3,
        "crawl": "CC-MAIN-2025-08",
    }


def test_corpus_has_all_fields_of_its_form():
    fields = set(backfill.dag.params)
    assert fields - {"crawls"} == set(corpus.dag.params) - {"warcs", "crawl"}


@pytest.mark.parametrize("crawls", [[], ["CC-MAIN-2025-05"] * 2, ["../etc"], "CC-MAIN-2025-05", None])
def test_wrong_lists_of_crawls_are_refused(crawls):
    with pytest.raises(ParamValidationError):
        backfill.dag.params.get_param("crawls").resolve(crawls)


def test_it_can_be_shown():
    DagSerialization.from_dict(DagSerialization.to_dict(backfill.dag))
