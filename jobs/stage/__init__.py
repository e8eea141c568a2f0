"""What all stages share: the Spark session, parts as tasks, decisions beside the text, Parquet tables."""
