"""The yardstick: FastAPI, uvicorn and ONNX Runtime in one process, as one writes it in twenty lines.

Usage: python bare.py MODEL.onnx PORT. No validation, no batching, the session on the event loop.
"""

from __future__ import annotations

import sys

import numpy as np
import onnxruntime
import uvicorn
from fastapi import FastAPI, Request

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
app = FastAPI()


@app.post("/v2/models/m/infer")
async def infer(request: Request) -> dict:
    body = await request.json()
    tensor = body["inputs"][0]
    x = np.array(tensor["data"], dtype=np.float32).reshape(tensor["shape"])
    (y,) = session.run(None, {"x": x})
    data = y.ravel().tolist()
    outputs = [{"name": "logits", "shape": list(y.shape), "datatype": "FP32", "data": data}]
    return {"model_name": "m", "model_version": "1", "outputs": outputs}


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[2]), log_level="warning", access_log=False)
