#!/usr/bin/env bash
# Mini: speech synthesised in many voices, noise and all; from nothing to a table of subnets in minutes on two cores.
# Example: ./run.sh
set -euo pipefail
cd "$(dirname "$0")"
. ../common/recipe.sh

# Options of this corpus; those of every recipe are in ../common/recipe.sh.
corpus=downloads  # folder to make the corpus in
corpus_args="--train_minutes 150 --vocabulary_share 0.15 --open_share 0.03"  # options of make_mini_corpus (minutes, noise, vocabulary, seed), in one pair of quotes
train_set=train  # split to train on
valid_set=dev  # split to validate on
test_sets="test"  # splits to decode and score: voices and sentences that training never had
speed_factors=none  # the synthesiser varies the rate itself
token_type=char  # unigram, bpe (sentencepiece) or char
label="egs/mini: synthesised speech of unseen voices with noise, not a benchmark corpus"  # what the report says the data are
# End of options

stage_1() {
  local options
  read -ra options <<<"$corpus_args"
  python local/make_mini_corpus.py --output "$corpus" --nj "$nj" ${options[@]+"${options[@]}"}
  prepare_data "$corpus"
}

recipe "$@"
