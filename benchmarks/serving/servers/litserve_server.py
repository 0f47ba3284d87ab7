"""LitServe with its batching. Usage: python litserve_server.py MODEL.onnx PORT (in the peers' environment)."""

from __future__ import annotations

import sys

import litserve
import numpy as np
import onnxruntime


class Api(litserve.LitAPI):
    def setup(self, device: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])

    def decode_request(self, request: dict) -> np.ndarray:
        tensor = request["inputs"][0]
        return np.array(tensor["data"], dtype=np.float32).reshape(tensor["shape"][1:])

    def batch(self, inputs: list) -> np.ndarray:
        return np.stack(inputs)

    def predict(self, x: np.ndarray) -> np.ndarray:
        return self.session.run(None, {"x": x})[0]

    def unbatch(self, output: np.ndarray) -> list:
        return list(output)

    def encode_response(self, output: np.ndarray) -> dict:
        outputs = [{"name": "logits", "shape": [1, len(output)], "datatype": "FP32", "data": output.tolist()}]
        return {"model_name": "m", "model_version": "1", "outputs": outputs}


if __name__ == "__main__":
    api = Api(max_batch_size=16, batch_timeout=0.002, api_path="/v2/models/m/infer")
    server = litserve.LitServer(api, accelerator="cpu")
    server.run(
        port=int(sys.argv[2]), log_level="warning", access_log=False, num_api_servers=1, generate_client_file=False
    )
