#!/bin/bash
# Copy what an installation with Compose keeps, while it runs: artifacts, Airflow's database, the secrets.
#     make backup BACKUP=/mnt/backup
# docs/operate.md says how to restore it.
set -euo pipefail
cd "$(dirname "$0")/.."

umask 077 # it holds secrets
mkdir -p "$1"
cp docker/.env "$1/env"
# Under another name until it is whole: a backup that was interrupted must not look like one.
docker compose -f docker/compose.yaml exec -T postgres pg_dump -U airflow -Fc airflow >"$1/airflow.dump.new"
mv "$1/airflow.dump.new" "$1/airflow.dump"
docker compose -f docker/compose.yaml exec -T airflow-scheduler python docker/archive.py save s3://crawl2chat >"$1/artifacts.tar.new"
mv "$1/artifacts.tar.new" "$1/artifacts.tar"
ls -l "$1"
