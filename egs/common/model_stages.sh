# shellcheck shell=bash
# Stages 10 to 15: from data to a table of subnets. Sourced by recipe.sh, whose options and names they use.

# The experiment's folder.
experiment() {
  local name
  name=$(basename "$asr_config" .yaml)_${feats_type}_$(basename "$(token_dir)")
  printf 'exp/%s' "${asr_tag:-$name}"
}

statistics_dir() { printf 'exp/stats_%s_%s_%s' "$(train_data)" "$feats_type" "$(basename "$(token_dir)")"; }

# The table and ESPnet's data type of a set's input.
input_of() {
  if [ "$feats_type" = raw ]; then printf '%s/%s/wav.scp' "$(dump_dir)" "$1"; else printf '%s/%s/feats.scp' "$(dump_dir)" "$1"; fi
}
input_type() { if [ "$feats_type" = raw ]; then printf sound; else printf kaldi_ark; fi; }

# The table of the last test set, on which stage 14 measures.
measured_input() { input_of "${evaluation[${#evaluation[@]} - 1]}"; }

# Arguments that stages 10 and 11 share, in the array `training`. The tables are in the array `tables`.
set_training() {
  local tokens split
  tables=()
  tokens=$(token_dir)
  training=(--config "$asr_config" --use_preprocessor true --token_list "$tokens/tokens.txt")
  case $token_type in
    char) training+=(--token_type char) ;;
    phone) training+=(--token_type word) ;; # each phoneme is a word of the text
    *) training+=(--token_type bpe --bpemodel "$tokens/bpe.model") ;;
  esac
  [ "$feats_type" = raw ] || training+=(--input_size 80)
  for split in train valid; do
    local data
    data=$(if [ $split = train ]; then train_data; else split_name "$valid_set"; fi)
    tables+=("--${split}_data_path_and_name_and_type" "$(input_of "$data"),speech,$(input_type)"
      "--${split}_data_path_and_name_and_type" "$(text_dir)/$data/text,text,text")
  done
  local more
  read -ra more <<<"$asr_args"
  training+=("${more[@]}")
}

# Arguments of a training from Shar folders, in the array `iterator`.
set_iterator() {
  local shards
  shards=$(dump_dir)/shards
  iterator=(--iterator lhotse --iterator_conf "train=$shards/$(train_data)/shar"
    --iterator_conf "valid=$shards/$(split_name "$valid_set")/shar")
}

# One training step on random speech, without data. The vocabulary is that of the tokens if they are there already.
try_configuration() {
  local tokens vocabulary=$token_size features=80 more iterator=()
  tokens=$(token_dir)/tokens.txt
  [ ! -f "$tokens" ] || vocabulary=$(wc -l <"$tokens")
  [ "$feats_type" != raw ] || features=0
  [ "$feats_type" != shar ] || set_iterator
  read -ra more <<<"$asr_args"
  python -m espnet_todm.bin.dry_run --config "$asr_config" --vocabulary "$vocabulary" --input_size "$features" \
    ${iterator[@]+"${iterator[@]}"} "${more[@]}"
}

stage_10() {
  set_training
  set_launcher_arguments statistics
  python -m espnet_todm.bin.collect_stats --train_scp "$(input_of "$(train_data)")" \
    --valid_scp "$(input_of "$(split_name "$valid_set")")" --tokens "$(token_dir)/tokens.txt" \
    --output "$(statistics_dir)" "${launcher_arguments[@]}" -- "${training[@]}" "${tables[@]}"
}

# Run the command behind a name and a log, with its output at the end of the log; where it fails, show its error lines.
logged() {
  local name=$1 file=$2
  shift 2
  "$@" >>"$file" 2>&1 || {
    grep -h '^error: ' "$file" | tail -n 2 >&2 || true # a traceback has none
    die "$name stopped; its output is in $file"
  }
}

# Training resumes from its last checkpoint. The command stands in the experiment's train.sh, its output in train.log.
stage_11() {
  local folder statistics split iterator
  folder=$(experiment)
  statistics=$(statistics_dir)
  set_training
  training+=(--normalize global_mvn --normalize_conf "stats_file=$statistics/train/feats_stats.npz"
    --ngpu "$ngpu" --multiprocessing_distributed true --resume true --output_dir "$folder")
  if [ "$feats_type" = shar ]; then
    set_iterator
    training+=("${iterator[@]}")
  else
    training+=("${tables[@]}")
    for split in train valid; do
      training+=("--${split}_shape_file" "$statistics/$split/speech_shape" "--${split}_shape_file" "$statistics/$split/text_shape")
    done
  fi
  mkdir -p "$folder"
  local command=(python -m espnet_todm.bin.asr_train "${training[@]}")
  if [ "$ngpu" -eq 0 ]; then command=(python -m espnet_todm.bin.asr_train_cpu --processes "$cpu_processes" -- "${training[@]}"); fi
  printf '%s\n' "$(printf '%q ' "${command[@]}")" >"$folder/train.sh"
  log "training into $folder; follow $folder/train.log"
  logged training "$folder/train.log" "${command[@]}"
}

# The sizes of --sizes in the array `names`, with those made of them by fine-tuning; empty for all there are.
set_names() {
  local size
  read -ra names <<<"$sizes"
  [ "$fine_tune_steps" != 0 ] || return 0
  for size in ${names[@]+"${names[@]}"}; do names+=("${size}_ft"); done
}

stage_12() {
  local names
  read -ra names <<<"$sizes"
  python -m espnet_todm.bin.extract --asr_train_config "$(experiment)/config.yaml" \
    --output "$(experiment)/subnets" ${names[@]+--sizes "${names[@]}"} \
    ${inference_model:+--asr_model_file "$(experiment)/$inference_model"}
  [ "$fine_tune_steps" = 0 ] || fine_tune
  [ -z "$onnx" ] || export_models
}

# ONNX files of every extracted size, each tried on speech of the validation set before it takes its place.
export_models() {
  local data precisions size subnets=()
  data=data/$(split_name "$valid_set")
  read -ra precisions <<<"$onnx"
  set_names
  for size in ${names[@]+"${names[@]}"}; do subnets+=("$(experiment)/subnets/$size"); done
  [ ${#subnets[@]} -gt 0 ] || subnets=("$(experiment)"/subnets/*/)
  python -m espnet_todm.bin.export "${subnets[@]}" --precision "${precisions[@]}" --scp "$data/wav.scp" --text "$data/text"
}

# Each size is trained on by itself; the output goes to the experiment's fine_tune.log.
fine_tune() {
  local folder size subnets=()
  folder=$(experiment)
  if [ ${#names[@]} -eq 0 ]; then
    for size in "$folder"/subnets/*/; do
      size=$(basename "$size")
      case $size in *_ft) ;; *) names+=("$size") ;; esac
    done
  fi
  for size in "${names[@]}"; do subnets+=("$folder/subnets/$size"); done
  log "fine-tuning ${names[*]}; follow $folder/fine_tune.log"
  logged fine-tuning "$folder/fine_tune.log" python -m espnet_todm.bin.fine_tune "${subnets[@]}" --steps "$fine_tune_steps" \
    --lr "$fine_tune_lr" --ngpu "$ngpu" --processes "$cpu_processes" --training_args="$fine_tune_args"
}

# Whether stage 13 searches with the language model.
uses_lm() { has_lm && { [ "$search" = prefix ] || [ -n "$decode_config" ]; }; }

# Whether stage 13 writes words: with phonemes for tokens, only a search with a language model of words does.
writes_words() { [ "$token_type" != phone ] || { [ "$lm_unit" = word ] && uses_lm; }; }

# Where <set>/text with what stage 13 is to write stands.
reference_dir() { if writes_words; then dump_dir; else text_dir; fi; }

# Folder of the texts in the experiment: decode, decode_<search> or decode_<name of --decode_config>, and behind it _lm, unless
# --lm_scales give it no weight; also _phonemes, where another search of the experiment writes words.
decode_name() {
  local name=$search
  [ -z "$decode_config" ] || name=$(basename "$decode_config" .yaml)
  case $name in "" | greedy) printf decode ;; *) printf 'decode_%s' "$name" ;; esac
  ! uses_lm || [[ $lm_scales =~ ^0*\.?0*\  ]] || printf _lm
  writes_words || [ "$lm_unit" != word ] || printf _phonemes
}

# The folders of all contexts of --decode_chunk, in the array `decoded`: behind the name _chunk_<frames>_<left> or _chunk_full.
set_decoded() {
  local name words
  name=$(decode_name) decoded=()
  read -ra words <<<"$decode_chunk"
  set -- ${words[@]+"${words[@]}"}
  [ $# -gt 0 ] || decoded=("$name")
  while [ $# -gt 0 ]; do
    if [ "$1" = full ] || [ $# -eq 1 ]; then
      decoded+=("${name}_chunk_$1")
      shift
    else
      decoded+=("${name}_chunk_$1_$2")
      shift 2
    fi
  done
}

stage_13() {
  local names searching scales chunk decoded output
  set_names
  set_decoded
  set_evaluation
  searching=(${decode_config:+--config "$decode_config"} ${search:+--search "$search"} ${beam_size:+--beam_size "$beam_size"})
  read -ra chunk <<<"$decode_chunk"
  if uses_lm; then
    searching+=(--lm "$(lm_file)")
    [ "$lm_vocabulary$lm_unit" = openphone ] || searching+=(--lexicon "$(lm_lexicon_dir)/lexicon.txt")
    if [ "$lm_scales" = tuned ]; then
      set_launcher_arguments tuning
      python -m espnet_todm.bin.tune_lm --experiment "$(experiment)" --data "$(dump_dir)" --references "$(reference_dir)" \
        --set "$(split_name "$valid_set")" "${searching[@]}" ${names[@]+--sizes "${names[@]}"} "${launcher_arguments[@]}"
      searching+=(--tuned)
    else
      read -ra scales <<<"$lm_scales"
      searching+=(--lm_weight "${scales[0]}" --word_score="${scales[1]}")
    fi
  fi
  output=$(decode_name) # of several contexts, the beginning of the names
  [ ${#decoded[@]} -gt 1 ] || output=${decoded[0]}
  set_launcher_arguments decoding
  python -m espnet_todm.bin.decode --experiment "$(experiment)" --data "$(dump_dir)" --sets "${evaluation[@]}" \
    --output "$output" ${searching[@]+"${searching[@]}"} ${chunk[@]+--chunk "${chunk[@]}"} ${names[@]+--sizes "${names[@]}"} \
    "${launcher_arguments[@]}"
}

stage_14() {
  local names decoded strict=
  set_decoded
  writes_words || strict=--case_sensitive # e and E are two phonemes
  set_names
  set_evaluation
  python -m espnet_todm.bin.score --experiment "$(experiment)" --data "$(reference_dir)" --sets "${evaluation[*]}" \
    --decode "${decoded[@]}" ${sizes:+--sizes "${names[*]}"} ${official:+--corpus "$official"} ${strict:+"$strict"}
  python -m espnet_todm.bin.bench rtf --experiment "$(experiment)" ${names[@]+--sizes "${names[@]}"} \
    --scp "$(measured_input)"
  [ -z "$onnx" ] || measure_exports
  [ "$nonspeech_minutes" = 0 ] || measure_nonspeech
}

# The words that the sizes write where nobody speaks, for the report.
measure_nonspeech() {
  local precisions
  read -ra precisions <<<"$onnx"
  python -m espnet_todm.bin.bench nonspeech --experiment "$(experiment)" ${names[@]+--sizes "${names[@]}"} \
    --minutes "$nonspeech_minutes" ${precisions[@]+--precisions "${precisions[@]}"}
}

# What the exported files take of this machine, for the report.
measure_exports() {
  local precisions
  read -ra precisions <<<"$onnx"
  python -m espnet_todm.bin.bench models --experiment "$(experiment)" ${names[@]+--sizes "${names[@]}"} --runtimes onnxruntime \
    --precisions "${precisions[@]}" --scp "$(input_of "${evaluation[${#evaluation[@]} - 1]}")" \
    --output "$(experiment)/model_latency.json" --overwrite
}

stage_15() {
  local data=${label:-$test_sets} others
  read -ra others <<<"$report_with"
  case $token_type$lm_unit in
    phonephone) data+=" (in phonemes: what is called words here are phonemes)" ;;
    phoneword) data+=" (of sets marked phonemes, what is called words here are phonemes)" ;;
  esac
  python -m espnet_todm.bin.bench step --asr_train_config "$(experiment)/config.yaml" --output "$(experiment)/cost.json" --rounds 5
  python -m espnet_todm.bin.report --experiment "$(experiment)" ${others[@]+"${others[@]}"} --label "$data" --config "$asr_config" \
    --output "${results:-$(experiment)/RESULTS.md}" ${results:+--plots "${results%.md}"} ${official:+--corpus "$official"} \
    --command "$run_sh${given[*]+ $(printf '%q ' "${given[@]}")}" --command "$(cat "$(experiment)/train.sh")"
}
