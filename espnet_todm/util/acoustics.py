"""The sound and the features that models here are made for: what sherpa-onnx computes on a device too."""

from __future__ import annotations

SAMPLING_RATE = 16000  # Hz
FRAMES_PER_SECOND = 100  # of features, before an encoder's subsampling
FRAME_SAMPLES = SAMPLING_RATE // FRAMES_PER_SECOND  # from one frame to the next
WINDOW = SAMPLING_RATE // 40  # samples of a frame
MEL_BINS = 80  # of a frame, where nothing else is said
FRONTEND = "todm_fbank"  # the choice of `frontend:` that computes these features from audio
