"""Crawls backfilled through a running Airflow; a second backfill makes nothing."""

from __future__ import annotations

import pytest

from bench import backfill
from local.airflow import Installation, standalone


@pytest.mark.slow
def test_a_second_backfill_makes_nothing(tmp_path):
    root = str(tmp_path / "data")
    (tmp_path / "www").mkdir()
    installation, dags = Installation(backfill.HOME, root, 8396, tmp_path / "airflow"), ("backfill", "corpus")
    with backfill.served(tmp_path / "www", 2, 25) as crawls, standalone(installation, print, dags) as airflow:
        first = backfill.backfill(airflow, root, "first", crawls)
        assert first.states == dict.fromkeys(crawls, "success")
        begun, stages = backfill.attempts(root), len(backfill.STAGES) * len(crawls)
        assert backfill.stage_states(root, "first", crawls) == {"published": stages, "reused": 0}
        second = backfill.backfill(airflow, root, "second", crawls)
        assert second.states == first.states
        assert backfill.stage_states(root, "second", crawls) == {"published": 0, "reused": stages}
        assert backfill.attempts(root) == begun
