"""Airflow on this machine: setting it up, starting and stopping it, following a run in the terminal."""
