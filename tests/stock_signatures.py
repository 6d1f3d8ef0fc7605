"""What distinguishes the configurations of ESPnet's recipes, one line each, and small configurations of each kind.

A line has the encoder, what is trained, the front end, the input layer, the kind of positions, the criterion that picks the
best models, the scheduler, the precision, and what else it has. The lines cover ESPnet 202503's ``egs2/*/asr1/conf`` with a
Conformer or an E-Branchformer, and one each of the encoders besides.
"""

from __future__ import annotations

from typing import Any

import torch
from espnet2.asr.frontend.abs_frontend import AbsFrontend

SIGNATURES = """
conformer att default conv2d legacy acc warmuplr float32
conformer att default conv2d legacy loss warmuplr float32
conformer att default conv2d legacy loss+acc warmuplr float32
conformer att s3prl conv2d legacy loss warmuplr float32 preencoder freeze
conformer ctc default conv2d latest cer_ctc warmuplr amp
conformer ctc default conv2d latest cer_ctc warmuplr float32
conformer ctc default conv2d latest cer_ctc warmuplr float32 interctc
conformer ctc default conv2d latest cer_ctc warmuplr float32 conditioning
conformer ctc/att default conv2d latest acc noamlr float32
conformer ctc/att default conv2d latest acc warmuplr amp
conformer ctc/att default conv2d latest acc warmuplr amp stochastic_depth
conformer ctc/att default conv2d latest acc warmuplr float32
conformer ctc/att default conv2d legacy acc noamlr amp
conformer ctc/att default conv2d legacy acc noamlr float32
conformer ctc/att default conv2d legacy acc warmuplr amp
conformer ctc/att default conv2d legacy acc warmuplr amp no_macaron
conformer ctc/att default conv2d legacy acc warmuplr float32
conformer ctc/att default conv2d legacy acc warmuplr float32 freeze_encoder
conformer ctc/att default conv2d legacy acc warmuplr float32 no_macaron
conformer ctc/att default conv2d2 legacy acc warmuplr amp
conformer ctc/att default conv2d6 latest acc warmuplr amp
conformer ctc/att default conv2d6 legacy acc warmuplr float32
conformer ctc/att default conv2d6 legacy acc warmuplr float32 no_macaron
conformer ctc/att s3prl conv2d legacy acc noamlr float32 preencoder
conformer ctc/att s3prl conv2d latest acc warmuplr amp preencoder freeze
conformer ctc/att s3prl conv2d latest acc warmuplr float32 preencoder freeze
conformer ctc/att s3prl conv2d legacy stock warmuplr float32 preencoder freeze
conformer ctc/att s3prl conv2d legacy acc noamlr float32 preencoder freeze
conformer ctc/att s3prl conv2d legacy acc warmuplr amp preencoder freeze
conformer ctc/att s3prl conv2d legacy acc warmuplr float32 preencoder
conformer ctc/att s3prl conv2d legacy acc warmuplr float32 preencoder freeze
conformer ctc/att s3prl conv2d legacy acc warmuplr float32 preencoder freeze no_macaron
conformer ctc/att s3prl conv2d2 latest acc warmuplr float32 preencoder freeze
conformer ctc/att s3prl conv2d2 legacy stock warmuplr float32 preencoder freeze
conformer ctc/att s3prl conv2d2 legacy acc warmuplr float32 preencoder freeze
conformer ctc/att s3prl conv2d2 legacy acc warmuplr float32 preencoder freeze conditioning
conformer transducer default conv2d legacy cer_transducer warmuplr float32
conformer transducer+ctc default conv2d latest loss noamlr float32
conformer transducer+ctc default conv2d latest loss warmuplr float32
e_branchformer ctc default conv2d latest cer_ctc warmuplr amp
e_branchformer ctc/att default conv2d abs_pos acc warmuplr amp
e_branchformer ctc/att default conv2d latest stock warmuplr float32
e_branchformer ctc/att default conv2d latest acc noamlr float32
e_branchformer ctc/att default conv2d latest acc warmuplr amp
e_branchformer ctc/att default conv2d latest acc warmuplr amp layer_drop
e_branchformer ctc/att default conv2d latest acc warmuplr float32
e_branchformer ctc/att default conv2d latest acc warmuplr float32 layer_drop
e_branchformer ctc/att default conv2d2 latest acc warmuplr amp layer_drop
e_branchformer ctc/att s3prl conv1d2 latest acc warmuplr amp preencoder
e_branchformer ctc/att s3prl conv1d2 latest acc warmuplr amp preencoder freeze
e_branchformer ctc/att s3prl conv2d latest acc warmuplr float32 preencoder layer_drop freeze
e_branchformer ctc/att s3prl conv2d1 latest acc warmuplr amp preencoder conditioning layer_drop freeze
e_branchformer ctc/att s3prl conv2d1 latest acc warmuplr amp preencoder layer_drop freeze
e_branchformer ctc/att s3prl conv2d2 latest acc warmuplr amp preencoder freeze
e_branchformer ctc/att s3prl conv2d2 latest acc warmuplr amp preencoder layer_drop freeze
e_branchformer ctc/att s3prl conv2d2 latest acc warmuplr float32 preencoder conditioning layer_drop freeze
e_branchformer ctc/att s3prl conv2d2 latest acc warmuplr float32 preencoder layer_drop freeze
e_branchformer transducer+ctc default conv2d latest loss warmuplr float32
transformer ctc/att default conv2d abs_pos acc warmuplr float32
transformer ctc/att default conv2d abs_pos acc noamlr amp
branchformer ctc/att default conv2d latest acc warmuplr float32
""".strip().splitlines()

SIZE = 16
FEATURES = 24  # of the stand-in for s3prl
PREENCODED = 20
ATTENTION = {
    "decoder": "transformer",
    "decoder_conf": {"attention_heads": 2, "linear_units": SIZE, "num_blocks": 1, "dropout_rate": 0.1},
}
TRANSDUCER = {
    "decoder": "transducer",
    "decoder_conf": {"rnn_type": "lstm", "num_layers": 1, "hidden_size": SIZE},
    "joint_net_conf": {"joint_space_size": SIZE},
}
TASKS: dict[str, dict[str, Any]] = {
    "ctc": {"model_conf": {"ctc_weight": 1.0}},
    "att": {**ATTENTION, "model_conf": {"ctc_weight": 0.0, "lsm_weight": 0.1, "length_normalized_loss": False}},
    "ctc/att": {**ATTENTION, "model_conf": {"ctc_weight": 0.3, "lsm_weight": 0.1, "length_normalized_loss": False}},
    "transducer": {**TRANSDUCER, "model_conf": {"ctc_weight": 0.0}},
    "transducer+ctc": {**TRANSDUCER, "model_conf": {"ctc_weight": 0.3, "report_cer": True, "report_wer": True}},
}
CONFORMER = {"macaron_style": True, "use_cnn_module": True, "cnn_module_kernel": 5, "activation_type": "swish"}
CGMLP = {"cgmlp_linear_units": 2 * SIZE, "cgmlp_conv_kernel": 5}
ENCODERS: dict[str, dict[str, Any]] = {
    "conformer": {**CONFORMER, "linear_units": 32, "normalize_before": True, "selfattention_layer_type": "rel_selfattn"},
    "e_branchformer": {
        **CGMLP, "linear_units": 32, "merge_conv_kernel": 5, "use_ffn": True, "macaron_ffn": True,
        "gate_activation": "identity", "use_linear_after_conv": False, "positionwise_layer_type": "linear",
    },
    "transformer": {"linear_units": 32, "normalize_before": True},
    "branchformer": {
        **CGMLP, "use_attn": True, "use_cgmlp": True, "merge_method": "concat", "gate_activation": "identity",
    },
}  # fmt: skip
MORE: dict[str, dict[str, Any]] = {
    "preencoder": {"preencoder": "linear", "preencoder_conf": {"input_size": FEATURES, "output_size": PREENCODED}},
    "freeze": {"freeze_param": ["frontend.upstream"], "unused_parameters": True},
    "freeze_encoder": {"freeze_param": ["encoder.encoders.0"]},
    "interctc": {"encoder_conf": {"interctc_layer_idx": [1]}, "model_conf": {"interctc_weight": 0.5}},
    "conditioning": {
        "encoder_conf": {"interctc_layer_idx": [1], "interctc_use_conditioning": True},
        "model_conf": {"interctc_weight": 0.5},
    },
    "layer_drop": {"encoder_conf": {"layer_drop_rate": 0.1}},
    "stochastic_depth": {"encoder_conf": {"stochastic_depth_rate": [0.0, 0.1]}},
    "no_macaron": {"encoder_conf": {"macaron_style": False}},
}


class StubFrontend(AbsFrontend):
    """Stands in for s3prl, whose models would have to be downloaded: audio (B, N) -> features (B, N // 160, FEATURES)."""

    def __init__(self, **_: Any) -> None:
        super().__init__()
        self.upstream = torch.nn.Linear(160, FEATURES)

    def output_size(self) -> int:
        return FEATURES

    def forward(self, audio: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        frames = audio.size(1) // 160
        return self.upstream(audio[:, : frames * 160].reshape(len(audio), frames, 160)), lengths // 160


def criteria(signature: str) -> list[list[str]]:
    """best_model_criterion of a signature; ``stock`` is what ESPnet has where a configuration says nothing."""
    names = signature.split()[5]
    if names == "stock":
        return [["train", "loss", "min"], ["valid", "loss", "min"], ["train", "acc", "max"], ["valid", "acc", "max"]]
    return [["valid", name, "max" if name == "acc" else "min"] for name in names.split("+")]


def small_config(signature: str) -> dict[str, Any]:
    """A stock configuration of this signature, two blocks and two batches an epoch, and a supernet's lines."""
    encoder, task, frontend, input_layer, positions, criterion, scheduler, precision, *more = signature.split()
    config: dict[str, Any] = {
        "encoder": f"todm_{encoder}",
        "encoder_conf": {
            "output_size": SIZE, "attention_heads": 2, "num_blocks": 2, "input_layer": input_layer,
            **ENCODERS[encoder], **position_options(encoder, positions),
            "sizes": {"small": {"depth": 0.5}},
        },
        "model": "todm",
        "subnet_trainer": "kd",
        "subnet_trainer_conf": {"random_subnets": 1, "kd_weight": 0.5},
        **TASKS[task],
        "frontend": frontend,
        "frontend_conf": {"n_fft": 512, "hop_length": 160, "n_mels": PREENCODED} if frontend == "default" else {},
        "specaug": "specaug",
        "specaug_conf": {
            "apply_time_warp": True, "time_warp_window": 5, "time_warp_mode": "bicubic",
            "apply_freq_mask": True, "freq_mask_width_range": [0, 4], "num_freq_mask": 2,
            "apply_time_mask": True, "time_mask_width_ratio_range": [0.0, 0.05], "num_time_mask": 2,
        },
        "optim": "adam",
        "optim_conf": {"lr": 0.002, "weight_decay": 0.000001},
        "scheduler": scheduler,
        "scheduler_conf": {"warmup_steps": 10, **({"model_size": SIZE} if scheduler == "noamlr" else {})},
        "use_amp": precision == "amp",
        "init": "xavier_uniform",
        "grad_clip": 5.0,
        "batch_type": "numel", "batch_bins": 200000, "max_epoch": 2, "num_iters_per_epoch": 2, "keep_nbest_models": 2,
        "num_workers": 0, "use_matplotlib": False, "use_tensorboard": False,
    }  # fmt: skip
    if criterion != "stock":
        config["best_model_criterion"] = criteria(signature)
    for name in more:
        for key, value in MORE[name].items():
            both = isinstance(value, dict) and isinstance(config.get(key), dict)
            config[key] = {**config[key], **value} if both else value
    return config


def position_options(encoder: str, positions: str) -> dict[str, Any]:
    """As a stock configuration writes them; ``legacy``, a Conformer's default, is not written."""
    if encoder == "transformer":
        return {}
    relative = {} if positions == "legacy" else {"rel_pos_type": "latest"}
    if positions == "abs_pos":
        relative = {"pos_enc_layer_type": "abs_pos"}
    kind = "selfattn" if positions == "abs_pos" else "rel_selfattn"
    if encoder == "conformer":
        return {"pos_enc_layer_type": "rel_pos", **relative, "selfattention_layer_type": kind}
    return {"pos_enc_layer_type": "rel_pos", **relative, "attention_layer_type": kind}
