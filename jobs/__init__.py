"""Spark stages of the corpus: one file per stage, each an entry point for `spark-submit`.

No file or folder in here may bear the name of a module that anything imports: spark-submit puts this folder first on
the path. Therefore `inspect` is in `commands/`.
"""
