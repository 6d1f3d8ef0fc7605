#!/usr/bin/env bash
# Your own speech: from data folders as Kaldi and ESPnet make them to a table of subnets.
# Example: ./run.sh --corpus ../../../espnet/egs2/an4/asr1/data --train_set train_nodev --valid_set train_dev --test_sets test
set -euo pipefail
cd "$(dirname "$0")"
. ../common/recipe.sh

# Options of this corpus; those of every recipe are in ../common/recipe.sh.
corpus=  # folder that holds the data folders, or holds them in data/
train_set=train  # split to train on: a data folder with wav.scp and text, or name=folder+folder
valid_set=dev  # split to validate on
test_sets=test  # splits to decode and score, in one pair of quotes
asr_config=conf/train_ctc.yaml  # training configuration of ESPnet
# End of options

stage_1() { prepare_data "$corpus" --layout kaldi; }

recipe "$@"
