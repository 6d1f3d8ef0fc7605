"""What runs a model: PyTorch, onnxruntime and sherpa-onnx, behind one interface."""
