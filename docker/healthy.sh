#!/bin/bash
# Whether a server answers, and a part of Airflow beats, as the api-server tells it: ends with 0, or says what it found.
# Bash by itself: run all the time, beside a dozen others, Python would cost a tenth of a core.
#     healthy.sh 127.0.0.1:8090/healthz
#     healthy.sh airflow-api-server:8080/api/v2/monitor/health scheduler
set -euo pipefail

at=${1%%/*}
exec 3<>"/dev/tcp/${at/://}"
printf 'GET /%s HTTP/1.0\r\nHost: %s\r\n\r\n' "${1#*/}" "$at" >&3
answer=$(tr -d '\r' <&3)
well='"status": *"healthy"'
if [[ ${answer%%$'\n'*} != *" 200 "* ]] || { [ $# -gt 1 ] && [[ ! $answer =~ \"$2\":\ *\{[^\}]*$well ]]; }; then
  echo "$answer"
  exit 1
fi
