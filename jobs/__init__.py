"""Spark stages of the corpus: one file a stage, each an entry point for `spark-submit`."""

from pathlib import Path

# `python -m jobs.inspect` lies in commands/: spark-submit puts jobs/ itself first on the path of a script, and there
# its file would be everybody's `inspect`.
__path__.append(str(Path(__file__).parent / "commands"))
