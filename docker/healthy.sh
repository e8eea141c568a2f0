#!/bin/bash
# Health check: exits with 0 if the URL answers 200 and, with a second argument, if Airflow's api-server reports that
# component as healthy; else prints the response and exits with 1. In Bash alone: a dozen of these run all the time, and
# starting Python for each would cost a tenth of a core.
#     healthy.sh 127.0.0.1:8090/healthz
#     healthy.sh airflow-api-server:8080/api/v2/monitor/health scheduler
set -euo pipefail

server=${1%%/*}
exec 3<>"/dev/tcp/${server/://}"
printf 'GET /%s HTTP/1.0\r\nHost: %s\r\n\r\n' "${1#*/}" "$server" >&3
answer=$(tr -d '\r' <&3)
healthy='"status": *"healthy"'
if [[ ${answer%%$'\n'*} != *" 200 "* ]] || { [ $# -gt 1 ] && [[ ! $answer =~ \"$2\":\ *\{[^\}]*$healthy ]]; }; then
  echo "$answer"
  exit 1
fi
