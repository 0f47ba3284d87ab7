"""TensorRT without a GPU, by the levels of docs/tensorrt.md."""
