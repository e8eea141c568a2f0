#!/bin/bash
# The tag of images of this working tree: version, commit, and a digest of what is not committed.
#     make tag
# A name is never given twice to different code, so that an upgrade rolls out: 0.1.0-3ee44122a1b2-dirty.5f2c9d01
set -euo pipefail
cd "$(dirname "$0")/.."

version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
# An unpacked release has no commit, even where it lies in the repository of something else.
if [ "$(git rev-parse --show-toplevel 2>/dev/null)" != "$(pwd -P)" ]; then
  echo "$version"
  exit
fi
tag=$version-$(git rev-parse --short=12 HEAD)
if [ -n "$(git status --porcelain)" ]; then
  changes=$( (git diff --binary HEAD; git ls-files -z --others --exclude-standard | xargs -0r sha256sum) | sha256sum)
  tag=$tag-dirty.${changes:0:8}
fi
echo "$tag"
