"""WARC files: where they are, how they are read, and what is saved of damaged ones."""
