"""Ray Serve as its documentation starts: a FastAPI ingress, default environment.

Usage: python ray_default.py MODEL.onnx PORT. No postponed annotations: FastAPI could not resolve them in a replica.
"""

import sys
import threading

import numpy as np
import onnxruntime
import ray
from fastapi import FastAPI, Request
from ray import serve

app = FastAPI()


@serve.deployment(max_ongoing_requests=100)
@serve.ingress(app)
class Model:
    def __init__(self, path: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    @app.post("/v2/models/m/infer")
    async def infer(self, request: Request) -> dict:
        body = await request.json()
        tensor = body["inputs"][0]
        x = np.array(tensor["data"], dtype=np.float32).reshape(tensor["shape"])
        (y,) = self.session.run(None, {"x": x})
        outputs = [{"name": "logits", "shape": list(y.shape), "datatype": "FP32", "data": y.ravel().tolist()}]
        return {"model_name": "m", "model_version": "1", "outputs": outputs}


if __name__ == "__main__":
    ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20)
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[2])})
    serve.run(Model.bind(sys.argv[1]))
    threading.Event().wait()
