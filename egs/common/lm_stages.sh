# shellcheck shell=bash
# Stages 6 to 9: a word n-gram for decoding with --search prefix. Sourced by recipe.sh, whose options and names they use.

# Whether there is a language model, its ARPA file (the one of --lm, or of stage 7), and the lexicon of its words in tokens.
has_lm() { [ -n "$lm" ] || [ "$lm_order" != 0 ]; }
lm_dir() { if [ -n "$lm" ]; then printf 'data/lm/%s' "$(basename "$lm")"; else printf 'data/lm/%sgram%s' "$lm_order" "$(lm_suffix)"; fi; }
lm_file() { if [ -n "$lm" ]; then printf '%s' "$lm"; else printf '%s/lm.arpa' "$(lm_dir)"; fi; }
lm_suffix() { if of_phonemes; then printf '_phone'; fi; }
lm_lexicon_dir() { printf '%s%s_%s' "$(lm_dir)" "$(of_phonemes || [ "$token_type" != phone ] || printf _words)" "$(basename "$(token_dir)")"; }

# Whether the language model is of phonemes.
of_phonemes() { [ "$token_type" = phone ] && [ "$lm_unit" = phone ]; }

stage_6() {
  local texts tables
  if [ -n "$lm" ]; then
    log "--lm $lm is used: nothing to do"
    return
  fi
  read -ra texts <<<"$lm_text"
  read -ra tables <<<"$lm_tables"
  ! of_phonemes || texts+=(--lexicon "$lexicon")
  python -m espnet_todm.bin.make_lm_text --transcripts "data/$(split_name "$train_set")/text" ${tables[@]+"${tables[@]}"} \
    --output "data/lm/text$(lm_suffix)" --text ${texts[@]+"${texts[@]}"}
}

stage_7() {
  if [ -n "$lm" ]; then
    log "--lm $lm is used: nothing to do"
    return
  fi
  python -m espnet_todm.bin.make_ngram --text "data/lm/text$(lm_suffix)" --order "$lm_order" --min_count "$lm_min_count" \
    --output "$(lm_dir)"
}

stage_8() {
  local data
  data=$(if of_phonemes; then text_dir; else dump_dir; fi)
  set_evaluation
  python -m espnet_todm.bin.lm_perplexity --lm "$(lm_file)" --data "$data" --sets "${evaluation[@]}" \
    --output "$(lm_dir)_perplexity"
}

stage_9() {
  local options=()
  of_phonemes || [ "$token_type" != phone ] || options=(--pronunciations "$lexicon")
  python -m espnet_todm.bin.make_lm_lexicon --lm "$(lm_file)" --tokens "$(token_dir)" --output "$(lm_lexicon_dir)" \
    ${options[@]+"${options[@]}"}
}
