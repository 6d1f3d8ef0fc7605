#!/usr/bin/env bash
# From a stock ESPnet Conformer to three models for phones: the commands of docs/tutorial.md, one after the other.
# Example: ./tutorial.sh
# Arguments go to each ./run.sh, such as --nj 1. PROCESSES says how many share a batch in training (2), TRAINING_ARGS has more
# options for both trainings, such as "--max_epoch 1".
set -euo pipefail
cd "$(dirname "$0")"
# shellcheck source=/dev/null
. ./path.sh

processes=${PROCESSES:-2}
read -ra training_args <<<"${TRAINING_ARGS:-}"
stock=exp/stock
supernet=exp/tutorial
statistics=exp/stats_train_fbank_char
of_stock=(--asr_config conf/stock_conformer.yaml --asr_tag stock)
of_supernet=(--asr_config conf/train_tutorial.yaml --asr_tag tutorial --cpu_processes "$processes")

step() { printf '\n== %s\n' "$*"; }

step "0. Data, and a Conformer trained by plain ESPnet"
./run.sh --stop_stage 10 "${of_stock[@]}" "$@"
mkdir -p "$stock"
torchrun --standalone --nproc_per_node "$processes" -m espnet2.bin.asr_train \
  --config conf/stock_conformer.yaml --output_dir "$stock" --ngpu 0 --dist_backend gloo --resume true \
  --use_preprocessor true --token_type char --token_list data/token_list/char/tokens.txt --input_size 80 \
  --normalize global_mvn --normalize_conf "stats_file=$statistics/train/feats_stats.npz" \
  --train_data_path_and_name_and_type dump/fbank/train/feats.scp,speech,kaldi_ark \
  --train_data_path_and_name_and_type dump/fbank/train/text,text,text \
  --train_shape_file "$statistics/train/speech_shape" --train_shape_file "$statistics/train/text_shape" \
  --valid_data_path_and_name_and_type dump/fbank/dev/feats.scp,speech,kaldi_ark \
  --valid_data_path_and_name_and_type dump/fbank/dev/text,text,text \
  --valid_shape_file "$statistics/valid/speech_shape" --valid_shape_file "$statistics/valid/text_shape" \
  ${training_args[@]+"${training_args[@]}"} >>"$stock/train.log" 2>&1 || {
  printf 'error: ESPnet stopped; its output is in %s\n' "$stock/train.log" >&2
  exit 1
}

step "1. The stock model as the full size of a supernet: the same outputs, its ONNX files, its error rate"
./run.sh --stage 12 --stop_stage 14 "${of_stock[@]}" --onnx "fp32 int8" "$@"

step "2. What the sizes of the supernet cost"
./run.sh --dry_run true "${of_supernet[@]}" "$@"

step "3. The supernet, trained on from the checkpoint"
./run.sh --stage 11 --stop_stage 11 "${of_supernet[@]}" --asr_args "${TRAINING_ARGS:-}" "$@"

step "4. Its sizes: extracted, exported through the parity gate, decoded, scored and timed"
./run.sh --stage 12 --stop_stage 14 "${of_supernet[@]}" --onnx "fp32 int8" "$@"

step "5. The small model in stock sherpa-onnx, and in plain ESPnet"
head -n 3 data/test/wav.scp >exp/three_wav.scp
head -n 3 dump/fbank/test/feats.scp >exp/three_feats.scp
python - "$supernet/subnets/small/onnx" exp/three_wav.scp <<'END'
import sys

import sherpa_onnx
import soundfile

folder, scp = sys.argv[1:]
recognizer = sherpa_onnx.OfflineRecognizer.from_zipformer_ctc(
    model=f"{folder}/model.int8.onnx", tokens=f"{folder}/tokens.txt"
)
for line in open(scp):
    name, path = line.split()
    samples, rate = soundfile.read(path, dtype="float32")
    stream = recognizer.create_stream()
    stream.accept_waveform(rate, samples)
    recognizer.decode_stream(stream)
    print("sherpa-onnx", name, stream.result.text)
END
python -m espnet2.bin.asr_inference --asr_train_config "$supernet/subnets/small/config.yaml" \
  --asr_model_file "$supernet/subnets/small/model.pth" --ctc_weight 1.0 --beam_size 1 --ngpu 0 --output_dir "$supernet/plain" \
  --data_path_and_name_and_type exp/three_feats.scp,speech,kaldi_ark >"$supernet/plain.log" 2>&1 || {
  printf 'error: ESPnet stopped; its output is in %s\n' "$supernet/plain.log" >&2
  exit 1
}
sed 's/^/ESPnet /' "$supernet/plain/1best_recog/text"

step "6. All in one table"
python -m espnet_todm.bin.overview "$stock" "$supernet" --set test
