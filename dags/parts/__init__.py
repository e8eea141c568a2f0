"""What the DAGs are made of: tasks, operators, form, questions."""
