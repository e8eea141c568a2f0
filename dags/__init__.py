"""What runs after what. Imports only Airflow and `pipeline`, since Airflow parses the DAG files again and again."""
