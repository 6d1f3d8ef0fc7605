"""Export formats, one file each: the graphs of a model, its runtime, its sherpa-onnx recognizer and its checks."""
