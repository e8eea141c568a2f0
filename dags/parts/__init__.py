"""What the DAGs are made of: tasks, operators, trigger form, approvals."""
