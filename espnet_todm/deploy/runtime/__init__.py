"""Runtimes for models behind one interface: PyTorch, onnxruntime and sherpa-onnx."""
