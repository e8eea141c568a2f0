"""Where the benchmarks find the repository, and the data sets beside it."""

from __future__ import annotations

from pathlib import Path

HOME = Path(__file__).resolve().parents[1]
DATA = HOME.parent / "shared/data"  # not part of the repository; its README says where each set is from
# 2,436 real pages; a checkout without the shared data measures the 1,038 pages of the bundled sample instead.
CRAWL = DATA / "crawl" if (DATA / "crawl").exists() else HOME / "tests/data/sample"
