#!/usr/bin/env bash
# A comparison of methods on a corpus of its own: 150 minutes of speech to train on, and dev and test sets of more than 8,000 words each.
# It is made once, in exp/<work>, where the experiments go as well; the demo's data and experiments stay as they are.
# Run it again after an interruption, and it goes on. Arguments behind -- go to the recipe's stages 11 to 14.
# Example: ./compare.sh --plan conf/compare.yaml --workers 2 -- --nj 1
set -euo pipefail
cd "$(dirname "$0")"
# shellcheck source=/dev/null
. ./path.sh

# Options
plan=conf/compare.yaml  # what is trained and compared, see docs/recipes.md
output=COMPARISON.md  # the report, with a folder of the same name for its pictures
label="egs/mini: synthesised speech of unseen voices with noise, not a benchmark corpus"  # what the report says the data are
workers=1  # trainings at a time
processes=1  # processes that share each batch of a training
only=  # the one method to run and show, by its name in the plan (empty: all)
report_only=false  # true trains nothing and reports what is done so far
results=  # folder for small files with the results of each training; those of other machines count as done (empty: none)
work=large  # folder in exp/ for data and experiments
corpus_args="--train_minutes 150 --vocabulary_share 0.15 --open_share 0.03 --dev_minutes 48 --test_minutes 48"  # options of make_mini_corpus, in one pair of quotes
# End of options

die() { printf 'error: %s\n' "$*" >&2; exit 1; }

list_options() { sed -n '/^# Options/,/^# End of options/s/^\([a-z_]*\)=.*  # \(.*\)$/\1\t\2/p' compare.sh; }

print_help() {
  local name meaning
  sed -n '2,/^[^#]/s/^# \{0,1\}//p' compare.sh
  printf '\nOptions [default]:\n'
  while IFS=$'\t' read -r name meaning; do
    printf '  --%-12s %s [%s]\n' "$name" "$meaning" "${!name}"
  done < <(list_options)
}

while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) print_help; exit 0 ;;
    --) shift; break ;;
    --*) ;;
    *) die "$1 is no option; options begin with --, and those of the recipe stand behind --" ;;
  esac
  names=$(list_options | cut -f 1 | tr '\n' ' ')
  case " $names" in *" ${1#--} "*) ;; *) die "option $1 is unknown; there are: ${names% }; the recipe's stand behind --" ;; esac
  [ $# -ge 2 ] || die "option $1 needs a value"
  printf -v "${1#--}" %s "$2"
  shift 2
done
[[ $workers =~ ^[1-9][0-9]*$ ]] || die "--workers: '$workers', but a whole number from 1 is expected"
[[ $work =~ ^[A-Za-z0-9_-]+$ ]] || die "--work: '$work', but a name of letters, digits, _ and - is expected"
case $report_only in true | false) ;; *) die "--report_only: '$report_only', but true or false is expected" ;; esac

# The recipe once more, in a folder whose data/, dump/ and exp/ are its own.
there=exp/$work/egs/mini
mkdir -p "$there"
ln -sfn ../../../../conf "exp/$work/conf"
ln -sfn ../../../../common "exp/$work/egs/common"
for name in conf local cmd.sh path.sh run.sh; do ln -sfn "../../../../$name" "$there/$name"; done

# Experiments name their files relative to the recipe's folder, so the commands run there. Its conf/ is this folder's.
absolute() { case $1 in /*) printf '%s' "$1" ;; *) printf '%s/%s' "$PWD" "$1" ;; esac; }
[ -f "$there/$plan" ] || plan=$(absolute "$plan")
arguments=(--plan "$plan" --folder "$(basename "$plan" .yaml)" --label "$label" --output "$(absolute "$output")")
[ -z "$only" ] || arguments+=(--only "$only")
[ -z "$results" ] || arguments+=(--results "$(absolute "$results")")
compare() { cd "$there" && exec python -m espnet_todm.bin.compare "${arguments[@]}" "$@"; }

[ "$report_only" = false ] || compare --report_only
made=exp/$work/corpus_args # of the corpus whose stages 1 to 10 are done
if [ ! -f "$made" ]; then
  "$there/run.sh" --stop_stage 10 --corpus_args "$corpus_args"
  printf '%s\n' "$corpus_args" >"$made.part"
  mv "$made.part" "$made"
elif [ "$(cat "$made")" != "$corpus_args" ]; then
  die "--corpus_args: exp/$work has a corpus of '$(cat "$made")'; name another folder with --work, or remove this one"
fi

export ESPNET_TODM_PARENT="$$@$(uname -n)" # workers end with this script, even when it is killed
pids=() failed=0
for ((worker = 1; worker <= workers; worker++)); do
  printf 'worker %d: follow exp/%s/worker_%d.log\n' "$worker" "$work" "$worker"
  compare -- --cpu_processes "$processes" "$@" >>"exp/$work/worker_$worker.log" 2>&1 &
  pids+=($!)
done
for pid in "${pids[@]}"; do wait "$pid" || failed=1; done
if [ "$failed" = 1 ]; then
  grep -h '^error: ' "exp/$work"/worker_*.log | tail -n "$workers" >&2 || true
  die "a worker stopped; the report has what is done"
fi
printf 'the report is in %s\n' "$output"
