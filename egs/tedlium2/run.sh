#!/usr/bin/env bash
# TED-LIUM release 2: 207 hours of talks, from the corpus to a table of subnets.
# Example: ./run.sh --corpus /corpora --stop_stage 5
set -euo pipefail
cd "$(dirname "$0")"
. ../common/recipe.sh

# Options of this corpus; those of every recipe are in ../common/recipe.sh.
corpus=  # folder that holds TEDLIUM_release2/, or the splits themselves
unknown=keep  # keep the <unk> of the transcripts, as ESPnet's and Kaldi's recipes do, or remove it
max_overlap=0.1  # seconds that segments of a talk may share
train_set=train  # split to train on: train, or name=folder+folder
valid_set=dev  # split to validate on
test_sets="dev test"  # splits to decode and score, in one pair of quotes
speed_factors=none  # speed-perturbed copies of the training set, e.g. "0.9 1.1", or none
asr_config=conf/ortho_flops_3sizes_bpe.yaml  # training configuration of ESPnet
official=tedlium2  # warn where a set that has an official name lacks segments
# End of options

stage_1() { prepare_data "$corpus" --layout tedlium2 --unknown "$unknown" --max_overlap "$max_overlap"; }

recipe "$@"
