#!/usr/bin/env bash
# Install the packages of requirements.lock into .venv. Called by make.
#   local/setup.sh        install
#   local/setup.sh lock   update requirements.lock and docker/cluster.lock from pyproject.toml
set -euo pipefail
cd "$(dirname "$0")/.."

# System packages. They are installed if we may (root on Debian); else the error names the command.
missing=()
python=
for candidate in python3.11 python3.12 python3; do
  if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null; then
    python=$candidate
    break
  fi
done
[ -n "$python" ] || missing+=(python3 python3-venv python3-dev)
if [ -n "$python" ]; then
  "$python" -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
  [ -f "$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["include"])')/Python.h" ] || missing+=(python3-dev)
fi
command -v g++ >/dev/null || missing+=(g++)
command -v java >/dev/null || missing+=(openjdk-17-jre-headless)
if [ ${#missing[@]} -gt 0 ]; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing ${missing[*]}"
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
    python=${python:-python3}
  else
    echo "error: this machine lacks: ${missing[*]}" >&2
    echo "  -> sudo apt-get install ${missing[*]}" >&2
    exit 6
  fi
fi

began=$SECONDS
[ -x .venv/bin/python ] || "$python" -m venv .venv
[ -x .venv/bin/uv ] || .venv/bin/python -m pip install -q uv

# Where torch comes from: a wheel in a folder of pip's find-links if there is one and no GPU; else uv chooses the CPU or
# the CUDA build for this machine.
options=()
links=$(.venv/bin/python -m pip config list 2>/dev/null | sed -n "s/^[^=]*find-links='\(.*\)'$/\1/p" | head -n 1)
gpu=$(command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | head -n 1 || true)
for link in $links; do
  if [ -d "$link" ] && [ -z "$gpu" ] && compgen -G "$link/torch-*" >/dev/null; then
    options=(--find-links "$link")
  fi
done
[ ${#options[@]} -gt 0 ] || options=(--torch-backend auto)

if [ "${1:-}" = lock ]; then
  overrides=$(mktemp)
  # Airflow's Spark provider requires pyspark-client, which overwrites files of pyspark: only one can be installed.
  echo 'pyspark-client; sys_platform == "never"' >"$overrides"
  # Pins stay unless pyproject.toml contradicts them: to get newer versions, empty the lock first.
  lock=$(mktemp)
  sed "/^torch==/d" requirements.lock >"$lock" # the options choose its build
  .venv/bin/uv pip compile -q --python .venv/bin/python "${options[@]}" --override "$overrides" --no-annotate --no-header \
    --no-emit-find-links --no-emit-index-url -o "$lock" \
    --extra airflow --extra jobs --extra training --extra web --extra dev pyproject.toml >/dev/null
  {
    echo "# All that crawl2chat runs on, pinned. Made by: make lock"
    sed 's/^\(torch==[0-9.]*\)+[a-z0-9]*$/\1/' "$lock"
  } >requirements.lock.new
  mv requirements.lock.new requirements.lock
  # Airflow's image has a few more packages.
  .venv/bin/uv pip compile -q --python .venv/bin/python "${options[@]}" --override "$overrides" --no-annotate --no-header \
    --no-emit-find-links --no-emit-index-url -c requirements.lock -o "$lock" \
    --extra airflow --extra jobs --extra training --extra web --extra cluster pyproject.toml >/dev/null
  {
    echo "# What the extra cluster of pyproject.toml adds to requirements.lock, for Airflow's image. Made by: make lock"
    grep -v '^torch==' "$lock" | grep -vxFf requirements.lock
  } >docker/cluster.lock
  rm -f "$lock" "$overrides"
  exit 0
fi

# Bytecode is compiled here: where it could not be written, a start of Airflow took 79 s instead of 57 (busy machine).
echo "installing into .venv"
.venv/bin/uv pip install -q --python .venv/bin/python --compile-bytecode "${options[@]}" --no-deps -r requirements.lock
.venv/bin/uv pip install -q --python .venv/bin/python --no-deps -e .
echo "writing an archive of Spark's classes, so that sessions start faster"
mkdir -p .crawl2chat
.venv/bin/python -m jobs.commands.prebuild >.crawl2chat/prebuild.log 2>&1 || echo "without the archive Spark starts more slowly: .crawl2chat/prebuild.log says why it was not made"
echo "ready: $(du -sh .venv | cut -f1) in .venv, $((SECONDS - began)) s"
