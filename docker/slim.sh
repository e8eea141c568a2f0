#!/bin/bash
# Remove from an environment what nothing imports: packages' own tests, C headers, and all but one of torch's programs.
#     slim .venv
set -euo pipefail

find "$1" -name '*.dist-info' -prune -o \
  \( -type d \( -name tests -o -name test -o -name include \) -o -path '*/torch/bin/*' ! -name torch_shm_manager \) \
  -prune -exec rm -r {} +
