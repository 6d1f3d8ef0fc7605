#!/usr/bin/env bash
# LibriSpeech: 100 hours as it stands, 960 hours with --train_set train-960, or any folders of LibriSpeech's layout.
# Example: ./run.sh --corpus /corpora --stop_stage 5
set -euo pipefail
cd "$(dirname "$0")"
. ../common/recipe.sh

# Options of this corpus; those of every recipe are in ../common/recipe.sh.
corpus=  # folder that holds LibriSpeech/; with --download true, the folder to put it in
download=false  # true downloads the official splits that are missing
train_set=train-clean-100  # split to train on: a folder of the corpus, train-460, train-960, or name=folder+folder
valid_set=dev  # split to validate on (dev is dev-clean and dev-other)
test_sets="dev-clean dev-other test-clean test-other"  # splits to decode and score, in one pair of quotes
official=librispeech  # warn where a set that has an official name lacks utterances
# End of options

stage_1() {
  case $download in
    true) prepare_data "$corpus" --download ;;
    false) prepare_data "$corpus" ;;
    *) die "--download: '$download', but true or false is expected" ;;
  esac
}

recipe "$@"
