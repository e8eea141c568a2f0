"""This machine's installation: sets it up, starts and stops Airflow, follows a run in the terminal."""
