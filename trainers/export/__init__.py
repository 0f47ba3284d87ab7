"""From a trained module to files that serve: ONNX, parity with torch, the bundle, TensorRT."""
