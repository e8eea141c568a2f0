"""What runs after what. Imports only Airflow and `pipeline`: a DAG file is parsed every few seconds."""
