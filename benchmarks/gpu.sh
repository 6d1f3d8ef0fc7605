#!/usr/bin/env bash
# All measurements that need a GPU, in at most ten minutes on one of them, without a network. Tables appear as they are
# measured, so a run that is cut off leaves what it has done; the same command again measures what is missing.
#
#   benchmarks/gpu.sh                    # tables into $OUT, or benchmarks/results/gpu
#   benchmarks/gpu.sh --smoke            # a trial on the CPU, about a minute, tiny models
#
# It needs Python with torch, torchaudio, numpy, scipy and PyYAML, and two files that benchmarks/gpu_pack.sh makes; see benchmarks/README.md.
set -euo pipefail
cd "$(dirname "$0")/.."

# Options
parts="steps losses training"  # parts to run, in one pair of quotes
output=${OUT:-benchmarks/results/gpu}  # folder for the tables
state=benchmarks/exp/gpu  # folder that is kept for the next run: rows, checkpoints
carried=benchmarks/exp  # folder of features.npz and packages.zip
minutes=9.5  # time for all of it
device=cuda  # cuda or cpu
smoke=false  # tiny models on the CPU
# End of options

die() { printf 'error: %s\n' "$*" >&2; exit 1; }

help() {
  sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
  sed -n '/^# Options/,/^# End/s/^\([a-z]*\)=\(.*\)  # \(.*\)$/  --\1: \3 [\2]/p' "$0"
}

while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) help; exit 0 ;;
    --smoke) smoke=true; shift; continue ;;
    --parts | --output | --state | --carried | --minutes | --device) ;;
    *) die "$1 is no option; there are --parts, --output, --state, --carried, --minutes, --device and --smoke" ;;
  esac
  [ $# -ge 2 ] || die "$1 needs a value"
  printf -v "${1#--}" %s "$2"
  shift 2
done
[[ $minutes =~ ^[0-9]+(\.[0-9]+)?$ ]] || die "--minutes: '$minutes', but a number is expected"
for part in $parts; do
  case $part in steps | losses | training) ;; *) die "--parts: '$part', but steps, losses and training are allowed" ;; esac
done

# Seconds since the start, and of the whole.
seconds=$(awk "BEGIN { print int($minutes * 60) }")
left() { printf '%s' $((seconds - SECONDS)); }

PYTHON=${PYTHON:-python3}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 PYTHONWARNINGS=ignore OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
mkdir -p "$output" "$state"
if [ -f "$carried/packages.zip" ]; then
  packages=$(cd "$state" && pwd)/packages
  [ -d "$packages" ] && [ ! "$carried/packages.zip" -nt "$packages" ] || "$PYTHON" -m zipfile -e "$carried/packages.zip" "$packages"
  export PYTHONPATH=$PYTHONPATH:$packages
fi
common=(--output "$output" --state "$state")
features=()
if [ "$smoke" = true ]; then
  device=cpu
  common+=(--smoke)
elif [ -f "$carried/features.npz" ]; then
  features=(--features "$carried/features.npz")
else
  case $parts in *training*) die "$carried/features.npz: no such file; benchmarks/gpu_pack.sh makes it" ;; esac
fi
common+=(--device "$device")
[ "$device" != cuda ] || "$PYTHON" -c "import sys, torch; sys.exit(not torch.cuda.is_available())" ||
  die "--device: '$device', but this Python's torch finds no GPU"

# run NAME SHARE [OPTION]...: a part gets this share of the time that is left, and is stopped a little later.
failed=
run() {
  local name=$1 limit
  limit=$(($(left) * $2 / 100))
  [ "$limit" -gt 5 ] || { printf '%s: no time left\n' "$name" >&2; failed+=" $name"; return; }
  timeout -k 5 $((limit + (limit > 60 ? 15 : 30))) "$PYTHON" -m "benchmarks.gpu.$name" "${common[@]}" --seconds "$limit" "${@:3}" ||
    { printf '%s: not complete (status %s)\n' "$name" $? >&2; failed+=" $name"; }
}

for part in $parts; do
  case $part in
    steps) run steps 35 ;;
    losses) run losses 20 ;;
    training) run twins 97 ${features[@]+"${features[@]}"} ;;
  esac
done
printf 'tables in %s after %s s:\n\n' "$output" "$SECONDS"
cat "$output"/*.md
[ -z "$failed" ] || die "not complete:$failed; run the same command again"
