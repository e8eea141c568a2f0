"""The documents of DAGs and tasks, which Airflow shows beside them.

A stage's is the docstring of its script: what it does, and the command that runs it by hand.
"""

from __future__ import annotations

import ast
from pathlib import Path

from pipeline.stages import Step

_PROJECT = Path(__file__).parents[2]
FORM = """
**The form.** What is changed most comes first; all other values are under *More settings*. A field that stays empty is
as in the recipe, and the help below each field gives the values of the recipes that come with the project. The log of
the task `resolve` lists what a form changed.

**While it runs** the tab *Live and report* of the run shows each stage; afterwards it holds the report.

**If a task fails**, the last red lines of its log are the error and, after `->`, the remedy. If the cause lies outside
the run, correct it and *Clear* the task: finished stages are kept. If it lies in the form, trigger a new run.
"""


def of_dag(docstring: str) -> str:
    """The document of a DAG: its docstring, and what all DAGs have in common."""
    return f"{docstring.strip()}\n{FORM}"


def of_step(step: Step) -> str:
    """The document of a stage's task: label, docstring of its script, and the sections of the recipe that are its."""
    sections = ", ".join(f"`{section}`" for section in step.sections)
    source = f"`{step.script}`" + (f"; section of the recipe: {sections}" if sections else "")
    return f"**{step.label}** ({source})\n\n{_docstring(step.script)}".strip()


def _docstring(script: str) -> str:
    """The docstring of a script below the project, or of a package; nothing is imported."""
    file = _PROJECT / script
    file = file / "__init__.py" if file.is_dir() else file
    return ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
