#!/usr/bin/env bash
# What benchmarks/gpu.sh needs on a GPU machine without network, made where the project's environment and the corpus are.
#
#   benchmarks/gpu_pack.sh CORPUS [SPLIT]...     # CORPUS/<split>/<speaker>/<chapter>/*.flac and *.trans.txt
#
# benchmarks/exp/features.npz: the recipe's features and the transcripts of three splits (training, validation, test;
# default train-mini dev-mini test-mini). benchmarks/exp/packages.zip: the packages without compiled code that the
# measurements import; gpu.sh unpacks them. Together they must stay below 60 MiB.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -ge 1 ] || { sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; exit 1; }
corpus=$1
shift
[ $# -gt 0 ] || set -- train-mini dev-mini test-mini
PYTHON=${PYTHON:-.venv/bin/python}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
mkdir -p benchmarks/exp
[ -f benchmarks/exp/features.npz ] ||
  "$PYTHON" -m benchmarks.gpu.pack_features --corpus "$corpus" --splits "$@" --output benchmarks/exp/features.npz
"$PYTHON" -m benchmarks.gpu.pack_packages --output benchmarks/exp/packages.zip
size=$(($(cat benchmarks/exp/features.npz benchmarks/exp/packages.zip | wc -c) / 1048576))
printf 'benchmarks/exp: %s MiB\n' "$size"
[ "$size" -lt 60 ] || { printf 'error: more than 60 MiB; take a larger --step, or fewer utterances\n' >&2; exit 1; }
