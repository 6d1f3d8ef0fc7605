"""Extracted models as ONNX graphs, in the forms that sherpa-onnx reads."""
