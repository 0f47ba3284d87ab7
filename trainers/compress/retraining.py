"""Networks that compression trains: fit on the training engine, export, prove parity, keep the result.

Invariant: a finished network's folder is renamed into place as a whole and named by the digest of its task; an
interrupted fit goes on from its last checkpoint.

Covered: training through Ray where a session runs, in this process where none does. Not covered: which networks are
trained (training_recipes.py).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from cluster.atomic import digest_json, new_folder, sha256_file, write_json
from cluster.bundle.files import WEIGHTS
from cluster.spec.batch_plan import BatchPlan
from cluster.spec.model import ModelSpec
from cluster.spec.resolve import ResolvedRun
from cluster.spec.train import TrainSpec
from cluster.telemetry.events import EventSink
from trainers.compress.candidate import Candidate, TrainingTask
from trainers.compress.distill import distillation_loss, write_teacher_shards
from trainers.compress.features import head_of
from trainers.compress.prune.cost import count_macs, count_parameters
from trainers.compress.prune.plan import Plan
from trainers.compress.students import build_student, student_arguments, untaught
from trainers.data.shards import PreparedData
from trainers.export.bundle import FLOAT_GRAPH
from trainers.export.float_graph import real_rows
from trainers.export.onnx import export_onnx
from trainers.export.parity import check_parity
from trainers.loop import FitRequest, FitResult, fit
from trainers.models.predict import tensors_of

PLAN = "plan.json"
NETWORK = "network.json"
FACTS = "facts.json"
FACTORY = "trainers.compress.students:build_student"
LOSS = f"{distillation_loss.__module__}:{distillation_loss.__name__}"


@dataclass(frozen=True)
class Retraining:
    """The run whose network is trained again, and where results are kept."""

    resolved: ResolvedRun
    prepared: PreparedData
    weights: Path
    """Folder with the trained network's `weights.safetensors`."""
    folder: Path
    events: Path | None
    """File of the run's events, for workers; None trains without Ray in any case."""
    sink: EventSink
    stage: str
    ensure_ray: Callable[[], bool] | None = None
    """Of the stage's context; None: networks train on Ray where this process has a session."""
    local: bool = False
    """Networks train in one process of this host, without Ray, as the run's own training did."""

    def module(self, plan: Plan | None = None) -> nn.Module:
        """The trained network, cut by a plan where one is given."""
        return build_student(**self.arguments(plan=plan, weights=str(self.weights / WEIGHTS))).eval()

    def arguments(self, model: ModelSpec | None = None, **more: Any) -> dict[str, Any]:
        """Arguments of `build_student` for a model on the run's data; None: the run's own."""
        data, model = self.prepared, model or self.resolved.spec.model
        return student_arguments(model, data.inputs, data.num_outputs, data.target, **more)

    def example(self) -> tuple[torch.Tensor, ...]:
        """A few real rows, to trace and count with."""
        rows = real_rows(self.prepared)
        return tensors_of({tensor.name: rows[tensor.name] for tensor in self.prepared.inputs}, slice(None))

    def make(self, proposed: Candidate) -> Candidate:
        """Train, export and prove the network of a candidate, or take the one that was made from the same task."""
        task = proposed.task
        assert isinstance(task, TrainingTask), f"{proposed.name} is trained"
        target = self.folder / f"{proposed.name}-{self._digest(task)[:16]}"
        if not (target / FACTS).exists():
            self._write_network(task, target)
        facts = json.loads((target / FACTS).read_text(encoding="utf-8"))
        sizes = {"parameters": facts["parameters"], "macs": facts["macs"]}
        return proposed.made(target / FLOAT_GRAPH, macs=facts["macs"], notes=sizes)

    def _write_network(self, task: TrainingTask, target: Path) -> None:
        """Weights, plan, model section, graph and facts of a network, in a folder that appears as a whole."""
        fit_folder = target.with_name(f"{target.name}.fit")
        weights = self._train(task, fit_folder)
        plan = task.arguments.get("plan")
        module = build_student(**{**task.arguments, "weights": None})
        module.load_state_dict(weights)
        with new_folder(target) as folder:
            save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / WEIGHTS)
            if plan is not None:
                write_json(folder / PLAN, plan)
            write_json(folder / NETWORK, {"model": task.arguments["model"]})
            write_json(folder / FACTS, self._export(module, folder / FLOAT_GRAPH))
        shutil.rmtree(fit_folder, ignore_errors=True)

    def _export(self, module: nn.Module, path: Path) -> dict[str, Any]:
        """Write the graph of a module, prove parity; returns its size in parameters and multiply-accumulates."""
        spec, rows = self.resolved.spec.export, real_rows(self.prepared)
        export_onnx(module.eval(), self.prepared.inputs, rows, path, opset=spec.opset)
        parity = check_parity(module, path, rows, spec.parity, self.prepared.target)
        return {"parameters": count_parameters(module), "macs": count_macs(module, self.example()), "parity": parity}

    def _train(self, task: TrainingTask, folder: Path) -> dict[str, torch.Tensor]:
        folder.mkdir(parents=True, exist_ok=True)
        request = self._request(task, folder)
        result = self._launch(request, folder)
        weights = untaught(result.weights, features=bool(request.model_arguments.get("lesson", {}).get("features")))
        return {name: tensor.cpu() for name, tensor in weights.items()}

    def _launch(self, request: FitRequest, folder: Path) -> FitResult:
        from trainers.compress.ray_tasks import ray_is_up

        if self.events is not None and (self.local or (self.ensure_ray or ray_is_up)()):
            from trainers.launch.fit import launch_fit
            from trainers.launch.ready_workers import ReadyWorkers

            return launch_fit(request, events=self.events, folder=folder, ready=ReadyWorkers(local=self.local))
        alone = request.batch.for_workers(1).for_micro_batch(request.batch.batch_size_global)
        return fit(replace(request, batch=alone), sink=self.sink)

    def _request(self, task: TrainingTask, folder: Path) -> FitRequest:
        run = self.resolved.spec
        train = retrain_spec(run.train, task)
        prepared, arguments = self.prepared.folder, dict(task.arguments)
        objective: dict[str, Any] = {}
        if task.distill:
            prepared, more, objective = self._teaching(live=augments(train))
            arguments |= more
        return FitRequest(
            train=train,
            batch=BatchPlan.of(train, len(self.prepared.splits["train"])),
            model=run.model,
            seed=run.seed,
            prepared=prepared.resolve(),
            stage=self.stage,
            checkpoints=folder / "checkpoints",
            model_factory=FACTORY,
            model_arguments=arguments,
            objective=LOSS if task.distill else None,
            objective_arguments=objective,
        )

    def _teaching(self, *, live: bool) -> tuple[Path, dict[str, Any], dict[str, Any]]:
        """Rows to learn from, more arguments of the student, arguments of the loss. `live`: the teacher answers."""
        spec = self.resolved.spec.compress.distill if self.resolved.spec.compress else None
        assert spec is not None, "distillation needs a compress section"
        outputs, features = self.prepared.num_outputs, bool(spec.feature_weight)
        objective: dict[str, Any] = {
            "temperature": spec.temperature,
            "soft_share": spec.soft_share,
            "num_outputs": outputs,
            "feature_weight": spec.feature_weight,
        }
        lesson = {"features": head_of(self.module(), outputs).in_features if features else 0, "answers": int(not live)}
        if live:
            objective["teacher"] = self.arguments(weights=str((self.weights / WEIGHTS).resolve()))
            return self.prepared.folder, {"lesson": lesson}, objective
        shards = self.folder / f"teacher-{self._teacher_digest(spec.teachers, features)[:16]}"
        write_teacher_shards(self.prepared, shards, self.module(), spec.teachers, features=features)
        return shards, {"lesson": lesson}, objective

    def _digest(self, task: TrainingTask) -> str:
        run = self.resolved.spec
        return digest_json(
            {
                "arguments": {**task.arguments, "weights": None},
                "from": sha256_file(self.weights / WEIGHTS),
                "train": retrain_spec(run.train, task).model_dump(mode="json"),
                "distill": run.compress.distill.model_dump(mode="json") if task.distill and run.compress else None,
                "export": run.export.model_dump(mode="json"),
                "seed": run.seed,
                "initial": task.arguments.get("weights") is not None,
            }
        )

    def _teacher_digest(self, teachers: tuple[str, ...], features: bool) -> str:
        return digest_json([sha256_file(self.weights / WEIGHTS), list(teachers), features])


def retrain_spec(train: TrainSpec, task: TrainingTask) -> TrainSpec:
    """The run's training section with the task's length and rate; mixed rows have no teacher, so none is mixed."""
    augment = (
        train.augment.model_copy(update={"mixup_alpha": 0.0, "cutmix_alpha": 0.0}) if task.distill else train.augment
    )
    optimizer = train.optimizer.model_copy(update={"learning_rate": task.learning_rate, "groups": ()})
    of_the_run = {"max_updates": None, "max_time_s": None, "callbacks": ()}  # and a student has other parameters
    return train.model_copy(update={"epochs": task.epochs, "optimizer": optimizer, "augment": augment, **of_the_run})


def augments(train: TrainSpec) -> bool:
    """Whether training rows are changed, so that logits of the unchanged rows do not fit them."""
    return bool(train.augment.shift_pixels)
