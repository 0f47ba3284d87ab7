"""One served version: engine, batcher, statistics, and their form in the protocol.

Invariant: `infer` gives each request its own rows or one error; after `retire` has returned, the engine is closed
and every request that was accepted has its outcome.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cluster.bundle import Bundle, TensorSpec
from cluster.errors import DataError
from serve.batching.batcher import Batcher
from serve.batching.parts import submit_in_parts
from serve.config import EndpointConfig, VersionConfig
from serve.models.loading import Loaded
from serve.protocol.codec import InferAnswer, InferRequest, RequestedOutput
from serve.protocol.errors import bad_request, too_large
from serve.protocol.limits import Limits
from serve.protocol.statistics import ModelStatistics
from serve.protocol.tensors import is_finite

CHECK_HERE_BYTES = 4 << 20  # of a tensor whose numbers the event loop looks at itself: about a millisecond


class ServedModel:
    """A version that is ready. Made on the event loop, after `load_engine` has proved the engine."""

    def __init__(
        self,
        config: EndpointConfig,
        version: VersionConfig,
        loaded: Loaded,
        limits: Limits,
    ) -> None:
        self.bundle, self.variant, self.engine, policy = loaded
        self.name, self.version = config.name, version.version
        self._version_policy = version_policy(config)
        self.manifest = self.bundle.manifest
        self.signature = self.manifest.signature
        self.statistics = ModelStatistics(self.name, self.version)
        self.statistics.memory_bytes = {config.device: self.engine.footprint_bytes()}
        self.limits = limits
        self.transforms = _transforms(self.bundle)
        self._floats = tuple(t.name for t in self.signature.inputs if t.dtype.kind == "f")
        self.follow(config)
        self.batcher = Batcher(self.engine.run, self.signature, policy, limits, self.statistics)

    def follow(self, config: EndpointConfig) -> None:
        """Take over what a new configuration may change without loading the version anew."""
        self.allow_non_finite = config.spec.allow_non_finite
        self.refuse_unseen = config.spec.unseen == "refuse"

    @property
    def engine_failure(self) -> str:
        """Why the engine can never answer again (its process died for good); empty while it can."""
        return str(getattr(self.engine, "failure", ""))

    async def infer(self, request: InferRequest) -> InferAnswer:
        """Wait for the batch of a request that `check` takes, and choose its outputs."""
        batcher, inputs = self.batcher, request.inputs
        options = {"priority": request.priority, "timeout_us": request.timeout_us}
        if batcher.policy.join and len(next(iter(inputs.values()))) > batcher.policy.max_rows:
            outputs = await submit_in_parts(batcher, self.statistics, inputs, **options)
        else:
            outputs = await batcher.submit(inputs, **options)
        return InferAnswer(self.name, self.version, self._choose(outputs, request.outputs), request.id)

    def is_large(self, request: InferRequest) -> bool:
        """Whether `check` takes longer than the event loop should be held."""
        return max([array.nbytes for array in request.inputs.values()]) > CHECK_HERE_BYTES

    def check(self, request: InferRequest) -> None:
        """Raise ProtocolError for inputs that the model does not take and outputs that it does not give."""
        try:
            self.signature.check_inputs(request.inputs)
        except DataError as error:
            raise bad_request(error.found, rule=error.rule) from None
        rows = len(next(iter(request.inputs.values())))
        if rows == 0:
            raise bad_request("the inputs have no rows", rule="at least one row")
        self.check_size(rows, sum(array.nbytes for array in request.inputs.values()))
        if not (self.allow_non_finite or request.is_finite):
            self._check_finite(request.inputs)
        policy = self.batcher.policy
        if self.engine.preferred_rows and rows > policy.max_rows and not policy.join:
            raise bad_request(
                f"the inputs have {rows} rows", rule=f"this engine is built for at most {policy.max_rows}"
            )
        known = {tensor.name for tensor in self.signature.outputs}
        for output in request.outputs:
            if output.name not in known:
                raise bad_request(f"output {output.name[:80]!r} is unknown", rule=f"one of {', '.join(sorted(known))}")

    def check_size(self, rows: int, num_bytes: int = 0) -> None:
        """Raise ProtocolError 413 for a request that the queue would not hold even alone."""
        limits = self.limits
        if rows > limits.queue_rows:
            raise too_large(f"the request has {rows} rows", f"at most {limits.queue_rows} (serve.queue.max_rows)")
        if num_bytes > limits.queue_bytes:
            raise too_large(
                f"the request's tensors have {num_bytes} bytes", f"at most {limits.queue_bytes} (serve.queue.max_mib)"
            )

    def _check_finite(self, inputs: Mapping[str, np.ndarray]) -> None:
        """Raise ProtocolError for NaN and infinity: what a graph makes of them is no answer, and an integer graph's
        looks like one."""
        for name in self._floats:
            if not is_finite(inputs[name]):
                finite = np.isfinite(inputs[name])
                row = int(np.flatnonzero(~finite.reshape(len(finite), -1).all(axis=1))[0])
                raise bad_request(
                    f"input {name!r} holds NaN or infinity in row {row}",
                    rule="inputs are finite numbers",
                    remedy="Send finite numbers; serve.allow_non_finite: true lets others reach the model.",
                )

    async def retire(self) -> None:
        """Answer what was accepted, then free the engine."""
        await self.batcher.drain()
        self.batcher.close()
        self.engine.close()

    def metadata(self, versions: Sequence[str]) -> dict[str, Any]:
        """GET v2/models/M."""
        return {
            "name": self.name,
            "versions": list(versions),
            "platform": self.engine.platform,
            "inputs": [_tensor_json(tensor) for tensor in self.signature.inputs],
            "outputs": [_tensor_json(tensor) for tensor in self.signature.outputs],
        }

    def configuration(self) -> dict[str, Any]:
        """GET v2/models/M/config: Triton's ModelConfig, the part that describes this endpoint."""
        policy = self.batcher.policy
        batching = {
            "preferred_batch_size": list(policy.preferred_rows),
            "max_queue_delay_microseconds": round(policy.max_wait_s * 1e6),
            "priority_levels": 8,
            "default_priority_level": 4,
        }
        return {
            "name": self.name,
            "platform": self.engine.platform,
            "backend": self.engine.platform.partition("_")[0],
            "version_policy": self._version_policy,
            "max_batch_size": policy.max_rows,
            "input": [_config_tensor(tensor, is_input=True) for tensor in self.signature.inputs],
            "output": [_config_tensor(tensor, is_input=False) for tensor in self.signature.outputs],
            **({"dynamic_batching": batching} if policy.join else {}),
            "instance_group": [{"name": self.name, "kind": "KIND_CPU", "count": policy.workers}],
            "default_model_filename": self.variant.file,
            "model_transaction_policy": {"decoupled": False},
            "response_cache": {"enable": False},
            "parameters": {
                "variant": {"string_value": self.variant.name},
                "rows_independent": {"string_value": "true" if policy.join else "false"},
            },
        }

    def _choose(self, outputs: dict[str, np.ndarray], wanted: tuple[RequestedOutput, ...]) -> dict[str, np.ndarray]:
        if not wanted:
            return outputs
        return {
            output.name: top_classes(outputs[output.name], output.classes, self.manifest.classes)
            if output.classes
            else outputs[output.name]
            for output in wanted
        }


def version_policy(config: EndpointConfig) -> dict[str, Any]:
    """The policy in the words of Triton's ModelConfig."""
    if config.spec.versions == "all":
        return {"all": {}}
    if config.spec.versions == "latest":
        return {"latest": {"num_versions": 1}}
    return {"specific": {"versions": [int(version.version) for version in config.loaded]}}


def _transforms(bundle: Bundle) -> Any:
    """The bundle's fitted transforms, or None for a model that takes tensors only."""
    raw = bundle.transforms()
    if raw is None:
        return None
    from cluster.bundle.transforms import load_transforms

    return load_transforms(raw)


def top_classes(scores: np.ndarray, num_classes: int, labels: Sequence[str]) -> np.ndarray:
    """The classification extension: (N, k) strings `score:index[:label]`, best first."""
    flat = scores.reshape(len(scores), -1)
    order = np.argsort(-flat, axis=1, kind="stable")[:, :num_classes]
    found = np.empty(order.shape, dtype=object)
    for row, indices in enumerate(order):
        for column, index in enumerate(indices):
            label = f":{labels[index]}" if index < len(labels) else ""
            found[row, column] = f"{flat[row, index]:f}:{index}{label}".encode()
    return found


def _tensor_json(tensor: TensorSpec) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}


def _config_tensor(tensor: TensorSpec, *, is_input: bool) -> dict[str, Any]:
    datatype = "TYPE_STRING" if tensor.datatype == "BYTES" else f"TYPE_{tensor.datatype}"
    found: dict[str, Any] = {"name": tensor.name, "data_type": datatype, "dims": list(tensor.item_shape)}
    return {**found, "optional": False, "is_shape_tensor": False} if is_input else {**found, "is_shape_tensor": False}
