"""All names of ESPnet that this package uses. If an ESPnet upgrade lacks a name, one test fails and reports the name.

``tests/espnet/test_contract.py`` compares these tables with the code and with the installed ESPnet.
"""

from __future__ import annotations

SUPPORTED = "202402 to 202511"

_TASK, _ABS_TASK, _TRAINER = "espnet2.tasks.asr", "espnet2.tasks.abs_task", "espnet2.train.trainer"
_MODEL, _REPORTER = "espnet2.asr.espnet_model", "espnet2.train.reporter"
_TRANSFORMER = "espnet.nets.pytorch_backend.transformer"

# Names that registration fills, replaces or derives classes from. It looks up all of them before it changes anything.
REGISTRATION = (
    (_TASK, "ASRTask"),
    *((_TASK, f"{part}_choices") for part in ("frontend", "specaug", "encoder", "decoder", "model")),
    *((_ABS_TASK, name) for name in ("optim_classes", "scheduler_classes", "load_pretrained_model")),
    *((_ABS_TASK, f"AbsTask.{name}") for name in ("build_iter_factory", "build_model_from_file", "main_worker")),
    ("espnet2.train.class_choices", "ClassChoices"),
    *((_TRAINER, name) for name in ("Trainer", "TrainerOptions", "Reporter", "average_nbest_models", "add_gradient_noise")),
    (_REPORTER, "SubReporter"),
    ("espnet2.schedulers.abs_scheduler", "AbsBatchStepScheduler"),
    ("espnet2.schedulers.abs_scheduler", "AbsValEpochStepScheduler"),
    (_MODEL, "ESPnetASRModel"),
    ("espnet2.asr.encoder.abs_encoder", "AbsEncoder"),
    ("espnet2.asr.decoder.abs_decoder", "AbsDecoder"),
    ("espnet2.asr.specaug.abs_specaug", "AbsSpecAug"),
    ("espnet2.asr.frontend.abs_frontend", "AbsFrontend"),
    *((f"{_TRANSFORMER}.embedding", f"{kind}PositionalEncoding") for kind in ("", "Scaled", "Rel", "LegacyRel")),
)  # fmt: skip

# Module -> names that the package imports from it.
IMPORTS = {
    _TRANSFORMER: "subsampling",
    f"{_TRANSFORMER}.embedding": "LegacyRelPositionalEncoding PositionalEncoding RelPositionalEncoding"
    " ScaledPositionalEncoding",
    f"{_TRANSFORMER}.subsampling": "Conv2dSubsampling Conv2dSubsampling1 Conv2dSubsampling2 Conv2dSubsampling6"
    " Conv2dSubsampling8 TooShortUttError",
    "espnet2.asr.decoder.abs_decoder": "AbsDecoder",
    "espnet2.asr.decoder.transducer_decoder": "TransducerDecoder",
    "espnet2.asr.encoder.abs_encoder": "AbsEncoder",
    "espnet2.asr.encoder.branchformer_encoder": "BranchformerEncoder",
    "espnet2.asr.encoder.conformer_encoder": "ConformerEncoder",
    "espnet2.asr.encoder.e_branchformer_encoder": "EBranchformerEncoder",
    "espnet2.asr.encoder.transformer_encoder": "TransformerEncoder",
    _MODEL: "ESPnetASRModel",
    "espnet2.asr.frontend.abs_frontend": "AbsFrontend",
    "espnet2.asr.frontend.default": "DefaultFrontend",
    "espnet2.asr.specaug.abs_specaug": "AbsSpecAug",
    "espnet2.asr.specaug.specaug": "SpecAug",
    "espnet2.asr.transducer.beam_search_transducer": "BeamSearchTransducer",
    "espnet2.asr_transducer.joint_network": "JointNetwork",
    "espnet2.bin.aggregate_stats_dirs": "aggregate_stats_dirs",
    "espnet2.iterators.abs_iter_factory": "AbsIterFactory",
    "espnet2.bin.asr_inference": "Speech2Text get_parser main",
    "espnet2.layers.global_mvn": "GlobalMVN",
    "espnet2.main_funcs.average_nbest_models": "average_nbest_models",
    "espnet2.main_funcs.pack_funcs": "pack",
    "espnet2.schedulers.abs_scheduler": "AbsBatchStepScheduler AbsValEpochStepScheduler",
    _ABS_TASK: "optim_classes scheduler_classes",
    _TASK: "ASRTask encoder_choices",
    "espnet2.tasks.lm": "LMTask",
    "espnet2.train.class_choices": "ClassChoices",
    "espnet2.text.build_tokenizer": "build_tokenizer",
    "espnet2.text.token_id_converter": "TokenIDConverter",
    "espnet2.torch_utils.device_funcs": "force_gatherable",
    "espnet2.train": "trainer",
    "espnet2.train.distributed_utils": "get_rank",
    _REPORTER: "Reporter SubReporter",
    _TRAINER: "Trainer TrainerOptions",
    "espnet2.utils.build_dataclass": "build_dataclass",
    "espnet2.utils.nested_dict_action": "NestedDictAction",
}

# Methods that the package calls or overrides, including private ones.
MEMBERS = {
    (_MODEL, "ESPnetASRModel"): "encode",
    (_TASK, "ASRTask"): "build_collate_fn build_iter_factory build_model build_model_from_file build_optimizers"
    " build_preprocess_fn class_choices_list"
    " get_parser main main_worker print_config trainer",
    (_TRAINER, "Trainer"): "build_options resume run train_one_epoch validate_one_epoch",
    (_REPORTER, "Reporter"): "check_early_stopping finish_epoch get_best_epoch get_epoch has set_epoch sort_epochs"
    " sort_epochs_and_values",
    (_REPORTER, "SubReporter"): "get_epoch get_total_count next register",
    ("espnet2.train.class_choices", "ClassChoices"): "choices get_class",
}

# Attributes of the instances of a class.
ATTRIBUTES = {
    (
        _MODEL,
        "ESPnetASRModel",
    ): "aux_ctc blank_id criterion_att ctc ctc_weight decoder encoder eos error_calculator frontend"
    " ignore_id interctc_weight joint_network lang_token_id normalize postencoder preencoder sos specaug token_list"
    " transducer_multi_blank_durations use_transducer_decoder vocab_size",
    (_REPORTER, "Reporter"): "epoch stats",
    (_REPORTER, "SubReporter"): "count epoch key stats total_count",
    ("espnet2.train.class_choices", "ClassChoices"): "classes default name optional",
    ("espnet2.bin.asr_inference", "Speech2Text"): "device dtype",
    ("espnet2.asr.specaug.specaug", "SpecAug"): "freq_mask time_mask time_warp",
}
