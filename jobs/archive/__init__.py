"""WARC files: where they are, how they are fetched and read, and how reading resumes in a damaged one."""
