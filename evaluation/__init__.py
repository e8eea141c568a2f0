"""Evaluation: tasks and their verifiers, benchmarks, memorization of the training text."""
