# shellcheck shell=bash source-path=SCRIPTDIR
# shellcheck disable=SC2034  # options are also used by the files that source this one
# The stages of every recipe. A recipe's run.sh sources this file, states its own options, defines stage_1 where the corpus
# asks for more than a folder, and ends with: recipe "$@"
#
# Each stage is a function and a few `python -m espnet_todm.bin.<command>`, which can be run by hand just as well. A stage that was
# completed with the same options says so and does nothing; one that was killed is repaired by running it again.

common=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
run_sh=./$(basename "$0") # run.sh has gone to its own folder

# Options: every line `name=default  # meaning` up to the end mark here, in cmd.sh and in run.sh is an option --name.
stage=1  # first stage to run
stop_stage=15  # last stage to run
train_set=  # split to train on: a folder of the corpus, or name=folder+folder
valid_set=  # split to validate on
test_sets=  # splits to decode and score, in one pair of quotes
dry_run=false  # true builds the model of --asr_config, runs one step on random speech, prints what its sizes cost, and stops
limit=  # keep only this many utterances of each split (for a quick trial)
speed_factors="0.9 1.1"  # speed-perturbed copies of the training set, or none
feats_type=fbank  # fbank (Kaldi's, 80 filters, in archives), shar (also in Shar folders, from which lhotse trains) or raw (audio; the model's front end computes features)
compression=two-byte  # of fbank archives: two-byte, one-byte or none
min_seconds=0.1  # shorter utterances are not trained on
max_seconds=30  # longer utterances are not trained on
max_clipped=0.01  # utterances with a larger share of samples at full scale are not trained on
max_quarantine_share=0.02  # stop when a larger share of a split is unreadable, empty, clipped, of another rate or without words
token_type=unigram  # unigram, bpe (sentencepiece), char or phone (phonemes of --lexicon, the last of a word marked with #)
token_size=500  # tokens in all, the special ones included (char and phone take all there are)
lexicon=  # for phone: a table of words and their phonemes (Kaldi's, CMUdict's, TED-LIUM's)
max_unknown_share=0.01  # for phone: stop when a larger share of a split's words is not in the lexicon
token_text=  # more text for the tokens: a Kaldi text table, plain or .gz
asr_config=conf/train_todm.yaml  # training configuration of ESPnet
asr_args=  # more options for the training command, in one pair of quotes
asr_tag=  # name of the experiment's folder in exp/ (empty: made from the configuration, the features and the tokens)
inference_model=  # checkpoint in the experiment's folder that subnets are taken from (empty: the best by the configuration's criterion)
lm_order=0  # words in the longest n-gram of the language model of stages 6 to 9, 2 to 5 (0: none)
lm_text=  # more sentences for it, in one pair of quotes: files with one a line, plain or .gz
lm_tables=  # more transcripts for it, in one pair of quotes: Kaldi text tables, plain or .gz; an utterance counts once
lm_unit=phone  # for --token_type phone: n-grams of phone, or of word (searches with them write words of --lexicon)
lm_min_count=1  # its words that are rarer become <unk>
lm=  # a language model to take instead: ARPA, plain or .gz
lm_vocabulary=open  # with it, open (any words are written) or closed (only its own; so it is for --lm_unit word)
lm_scales=tuned  # its scales: tuned (on valid_set), or in one pair of quotes the numbers lm_weight (0: none of it, only its words) and word_score
decode_config=  # YAML file of decoding settings, such as ../../conf/decode/maes.yaml (empty: greedy search)
search=  # how to decode: greedy, prefix (CTC, with the language model if there is one), or for transducers ESPnet's default, maes, tsd, alsd or nsc (empty: as --decode_config says)
beam_size=  # hypotheses that a beam search keeps (empty: as --decode_config says, else 5)
decode_chunk=  # for models trained on chunks: encoder frames of a chunk and of its left context to decode with, in one pair of quotes, or full, or several of these (empty: as the configuration says)
label=  # what the report says the data are (empty: the names of the test sets)
results=  # file for the report, with a folder of the same name for its plots (empty: RESULTS.md in the experiment's folder)
report_with=  # folders of other experiments to put into the same report, in one pair of quotes
official=  # librispeech or tedlium2: warn where a set that has an official name lacks utterances
sizes=  # sizes to extract, decode and score, in one pair of quotes (empty: all that the configuration names)
fine_tune_steps=0  # updates by which stage 12 trains each size on by itself, as another size <size>_ft (0: none)
fine_tune_lr=0.001  # AdamW's highest rate in them
fine_tune_args=  # more options for their training command, in one pair of quotes
onnx=  # ONNX files that stage 12 makes of each size and stage 14 times, in one pair of quotes: fp32, int8, fp16 (empty: none)
nonspeech_minutes=0  # minutes of silence, noise and tones in which stage 14 counts the words that each size writes (0: none)
ngpu=0  # GPUs to train with on each node; 0 trains on the CPU
cpu_processes=2  # processes that share each batch when the training is on the CPU
nj=$(getconf _NPROCESSORS_ONLN)  # jobs at a time in the stages that have many
# End of options

# shellcheck source=/dev/null
. ./path.sh
# shellcheck source=/dev/null
. ./cmd.sh

stage_names=("" "data" "speed perturbation" "features" "audio check and length filter" "tokens"
  "text of the language model" "n-grams" "perplexity" "lexicon"
  "statistics" "supernet training" "subnet extraction" "decoding" "scoring" "report")

log() { printf '%s %s\n' "$(date '+%F %T')" "$*"; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

# ---- names that the stages share ------------------------------------------------------------------------------------

# The name of a split: what stands before "=" in name=folder+folder.
split_name() { printf '%s' "${1%%=*}"; }

# The training set with its speed-perturbed copies, when there are any.
train_data() {
  if [ "$speed_factors" = none ]; then split_name "$train_set"; else printf '%s_sp' "$(split_name "$train_set")"; fi
}

# The names of the splits to validate on and to decode, each once, in the array `evaluation`.
set_evaluation() {
  local spec known=" "
  evaluation=()
  for spec in $valid_set $test_sets; do
    case $known in *" $(split_name "$spec") "*) continue ;; esac
    evaluation+=("$(split_name "$spec")")
    known+="${evaluation[${#evaluation[@]} - 1]} "
  done
}

# What stage 3 computes.
computed_type() { if [ "$feats_type" = raw ]; then printf raw; else printf fbank; fi; }

dump_dir() { printf 'dump/%s' "$feats_type"; }

token_dir() {
  case $token_type in
    char | phone) printf 'data/token_list/%s' "$token_type" ;;
    *) printf 'data/token_list/%s_%s' "$token_type" "$token_size" ;;
  esac
}

# Where <set>/text with what the model is to write stands: words, or phonemes.
text_dir() { if [ "$token_type" = phone ]; then token_dir; else dump_dir; fi; }

# Options of the commands that run many jobs; the argument names the stage in logs/.
set_launcher_arguments() {
  launcher_arguments=(--jobs "$nj" --launcher "$launcher" --launcher_options "$launcher_options" --logs "logs/$1")
}

# ---- stages 1 to 5: data --------------------------------------------------------------------------------------------

# prepare_data CORPUS [OPTION...]: stage 1 for a corpus in LibriSpeech's layout, or the one that --layout names.
prepare_data() {
  local options=(--corpus "$1" "${@:2}") splits
  [ -z "$limit" ] || options+=(--limit "$limit")
  [ -z "$official" ] || options+=(--official "$official")
  read -ra splits <<<"$train_set $valid_set $test_sets"
  set_launcher_arguments data
  python -m espnet_todm.bin.prepare_data "${options[@]}" --splits "${splits[@]}" "${launcher_arguments[@]}"
}

stage_1() { die "this recipe's run.sh defines no stage 1"; }

stage_2() {
  local factors data
  if [ "$speed_factors" = none ]; then
    log "speed_factors is none: no copies"
    return
  fi
  read -ra factors <<<"$speed_factors"
  data=data/$(split_name "$train_set")
  set_launcher_arguments speed
  python -m espnet_todm.bin.perturb_speed --data "$data" --output "${data}_sp" --factors "${factors[@]}" \
    "${launcher_arguments[@]}"
}

stage_3() {
  set_evaluation
  set_launcher_arguments features
  python -m espnet_todm.bin.compute_features --splits "$(train_data)" "${evaluation[@]}" --output "$(dump_dir)" \
    --feats_type "$(computed_type)" --compression "$compression" "${launcher_arguments[@]}"
}

stage_4() {
  local more
  set_evaluation
  read -ra more <<<"$asr_args"
  python -m espnet_todm.bin.filter_data --features "$(dump_dir)" --train "$(train_data)" --evaluation "${evaluation[@]}" \
    --min_seconds "$min_seconds" --max_seconds "$max_seconds" --max_clipped "$max_clipped" \
    --max_quarantine_share "$max_quarantine_share" -- --config "$asr_config" ${more[@]+"${more[@]}"}
  [ "$feats_type" = shar ] || return 0
  set_launcher_arguments shar
  python -m espnet_todm.bin.make_shar --features "$(dump_dir)" --splits "$(train_data)" "$(split_name "$valid_set")" \
    "${launcher_arguments[@]}"
}

stage_5() {
  local texts
  if [ "$token_type" = phone ]; then
    set_evaluation
    python -m espnet_todm.bin.make_phonemes --lexicon "$lexicon" --data "$(dump_dir)" \
      --splits "$(train_data)" "${evaluation[@]}" --max_unknown_share "$max_unknown_share" --output "$(token_dir)"
    return
  fi
  texts=("data/$(split_name "$train_set")/text")
  [ -z "$token_text" ] || texts+=("$token_text")
  python -m espnet_todm.bin.make_tokens --text "${texts[@]}" --token_type "$token_type" --size "$token_size" \
    --output "$(token_dir)"
}

# ---- stages 6 to 9: the language model -------------------------------------------------------------------------------

# shellcheck source=../common/lm_stages.sh
. "$common/lm_stages.sh"

# ---- stages 10 to 15: the model -------------------------------------------------------------------------------------

# shellcheck source=../common/model_stages.sh
. "$common/model_stages.sh"

# ---- options and order ----------------------------------------------------------------------------------------------

# The options as lines of name, tab, meaning; an option that run.sh states again with another default comes once.
list_options() {
  sed -n '/^# Options/,/^# End of options/s/^\([a-z][a-z0-9_]*\)=.*  # \(.*\)$/\1\t\2/p' "$common/recipe.sh" ./cmd.sh "$run_sh" |
    awk -F '\t' '!seen[$1]++'
}

print_help() {
  local name meaning
  printf 'Usage: %s [--option value]...\n' "$run_sh"
  sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$run_sh"
  printf '\nStages:\n'
  for name in {1..15}; do printf '  %2d  %s\n' "$name" "${stage_names[name]}"; done
  printf '\nOptions [default]:\n'
  while IFS=$'\t' read -r name meaning; do
    printf '  --%-22s %s [%s]\n' "$name" "$meaning" "${!name}"
  done < <(list_options)
}

parse_options() {
  local names name
  names=$(list_options | cut -f 1 | tr '\n' ' ')
  while [ $# -gt 0 ]; do
    case $1 in
      -h | --help) print_help; exit 0 ;;
      --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
      --*) ;;
      *) die "$1 is no option; options begin with --, and values that hold spaces stand in quotes" ;;
    esac
    name=${1#--}
    name=${name//-/_}
    case " $names" in *" $name "*) ;; *) die "option --$name is unknown; there are: ${names% }" ;; esac
    # Only options for other commands (asr_args, corpus_args) may have a value that looks like an option.
    if [ $# -lt 2 ] || [[ $2 = --* && $name != *_args ]]; then die "option --$name needs a value"; fi
    printf -v "$name" %s "$2"
    shift 2
  done
}

check_options() {
  local name
  for name in stage stop_stage; do
    case ${!name} in
      [1-9] | 1[0-5]) ;;
      *) die "--$name: '${!name}', but a number from 1 to 15 is expected" ;;
    esac
  done
  case $feats_type in fbank | shar | raw) ;; *) die "--feats_type: '$feats_type', but fbank, shar or raw is expected" ;; esac
  [ "$feats_type$token_type" != sharphone ] || die "--feats_type: shar has the words of stage 1, so it goes without --token_type phone"
  case $dry_run in true | false) ;; *) die "--dry_run: '$dry_run', but true or false is expected" ;; esac
  [ "$stage" -le "$stop_stage" ] || die "--stage: $stage lies behind --stop_stage $stop_stage"
  [ -z "$decode_config" ] || [ -z "$search" ] || die "--search: goes without --decode_config, which says how to search"
  case $lm_order in 0 | [2-5]) ;; *) die "--lm_order: '$lm_order', but 0 (no language model) or 2 to 5 is expected" ;; esac
  [[ $fine_tune_steps =~ ^(0|[2-9]|[1-9][0-9]+)$ ]] || die "--fine_tune_steps: '$fine_tune_steps', but 0 (none) or a whole number from 2 is expected"
  case $lm_unit in phone | word) ;; *) die "--lm_unit: '$lm_unit', but phone or word is expected" ;; esac
  [ "$lm_unit" = phone ] || [ "$token_type" = phone ] || die "--lm_unit: word is for --token_type phone, but --token_type is $token_type"
  case $lm_vocabulary in open | closed) ;; *) die "--lm_vocabulary: '$lm_vocabulary', but open or closed is expected" ;; esac
  [[ $lm_scales =~ ^(tuned|[0-9.]+\ -?[0-9.]+)$ ]] || die "--lm_scales: '$lm_scales', but tuned or two numbers are expected"
  [[ $nonspeech_minutes =~ ^[0-9]+([.][0-9]+)?$ ]] || die "--nonspeech_minutes: '$nonspeech_minutes', but a number of minutes is expected (0: none)"
  for name in train_set valid_set test_sets; do
    [ -n "${!name// /}" ] || die "--$name: empty, but a split's name is needed"
  done
  case $train_set in
    *" "*) die "--train_set: '$train_set', but one split is expected; join folders as name=folder+folder" ;;
  esac
}

recipe() {
  local number begin
  given=("$@")
  parse_options "$@"
  check_options
  if [ "$dry_run" = true ]; then
    try_configuration
    return
  fi
  mkdir -p logs
  export ESPNET_TODM_PARENT="$$@$(uname -n)" # commands end with this script, even when it is killed
  for ((number = stage; number <= stop_stage; number++)); do
    if [ "$number" -ge 6 ] && [ "$number" -le 9 ] && ! has_lm; then
      log "stage $number: --lm_order is 0, no language model"
      continue
    fi
    log "stage $number: ${stage_names[number]}"
    begin=$SECONDS
    "stage_$number"
    log "stage $number: done in $((SECONDS - begin)) s"
  done
}
