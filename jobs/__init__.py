"""Spark stages of the corpus: one file a stage, each an entry point for `spark-submit`."""
