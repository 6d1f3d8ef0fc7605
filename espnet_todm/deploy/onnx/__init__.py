"""Extracted models as ONNX graphs for sherpa-onnx."""
