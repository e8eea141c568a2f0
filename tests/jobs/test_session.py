"""What a Spark session writes to the log of its stage."""

from __future__ import annotations

from typing import Any


def test_a_session_logs_no_info_from_its_start_on(spark: Any) -> None:
    """Set when it has started, forty lines of INFO would stand before those of the stage."""
    assert spark.sparkContext.getConf().get("spark.log.level") == "WARN"
    root = spark.sparkContext._jvm.org.apache.logging.log4j.LogManager.getRootLogger()
    assert root.getLevel().toString() == "WARN"
