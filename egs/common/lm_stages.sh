# shellcheck shell=bash
# Stages 6 to 9: a word n-gram for decoding with --search prefix. Sourced by recipe.sh, whose options and names they use.

# Whether there is a language model, and its ARPA file: the one of --lm, or of stage 7.
has_lm() { [ -n "$lm" ] || [ "$lm_order" != 0 ]; }
lm_dir() { if [ -n "$lm" ]; then printf 'data/lm/%s' "$(basename "$lm")"; else printf 'data/lm/%sgram%s' "$lm_order" "$(lm_unit)"; fi; }
lm_file() { if [ -n "$lm" ]; then printf '%s' "$lm"; else printf '%s/lm.arpa' "$(lm_dir)"; fi; }
lm_unit() { if [ "$token_type" = phone ]; then printf '_phone'; fi; }
lm_lexicon_dir() { printf '%s_%s' "$(lm_dir)" "$(basename "$(token_dir)")"; }

stage_6() {
  local texts
  if [ -n "$lm" ]; then
    log "--lm $lm is used: nothing to do"
    return
  fi
  read -ra texts <<<"$lm_text"
  [ "$token_type" != phone ] || texts+=(--lexicon "$lexicon")
  python -m espnet_todm.bin.make_lm_text --transcripts "data/$(split_name "$train_set")/text" \
    --output "data/lm/text$(lm_unit)" --text ${texts[@]+"${texts[@]}"}
}

stage_7() {
  if [ -n "$lm" ]; then
    log "--lm $lm is used: nothing to do"
    return
  fi
  python -m espnet_todm.bin.make_ngram --text "data/lm/text$(lm_unit)" --order "$lm_order" --min_count "$lm_min_count" \
    --output "$(lm_dir)"
}

stage_8() {
  set_evaluation
  python -m espnet_todm.bin.lm_perplexity --lm "$(lm_file)" --data "$(text_dir)" --sets "${evaluation[@]}" \
    --output "$(lm_dir)_perplexity"
}

stage_9() {
  python -m espnet_todm.bin.make_lm_lexicon --lm "$(lm_file)" --tokens "$(token_dir)" --output "$(lm_lexicon_dir)"
}
