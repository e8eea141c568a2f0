"""The web application: the pages of the runs, and the report of a run as one file."""
