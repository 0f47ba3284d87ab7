"""A run's events for the tests of what is shown."""

from __future__ import annotations

from typing import Any

from cluster.telemetry.events import (
    EndpointReady,
    EpochFinished,
    Message,
    Progress,
    Record,
    RunFinished,
    RunStarted,
    StageFinished,
    StageStarted,
    TrainStep,
    TrialUpdated,
)

START_S = 1000.0
STAGES = ["check", "search", "train", "deploy"]
SUMMARY: dict[str, Any] = {
    "run": "digits",
    "metrics": {"accuracy": 0.9861, "loss": 0.0512},
    "size_before_bytes": 400_000,
    "size_after_bytes": 100_000,
    "variant": "int8_static",
    "latency": {"latency_ms_p50": 1.234, "latency_ms_p99": 3.456},
    "endpoint_check": {"rows": 64, "accuracy": 0.984},
    "endpoint": {
        "url": "http://127.0.0.1:8000",
        "kept": True,
        "curl": "curl -s http://127.0.0.1:8000/v2/models/digits/infer -d @runs/digits/request.json",
        "stop": "manta stop digits",
    },
    "bundle": "runs/digits/bundle",
    "report": "runs/digits/report.html",
}


def trial(name: str, state: Any, loss: float, note: str = "", epoch: float = 4) -> TrialUpdated:
    return TrialUpdated(
        time_s=START_S + 2,
        stage="search",
        trial=name,
        state=state,
        parameters={"train.optimizer.learning_rate": 0.00341, "train.batch_size_global": 64},
        metrics={"validation.loss": loss, "epoch": epoch},
        note=note,
    )


def searching() -> list[Record]:
    """Up to the middle of the search."""
    return [
        RunStarted(time_s=START_S, run="digits", stages=STAGES, pid=1, host="here"),
        StageStarted(time_s=START_S, stage="check", digest="a"),
        StageFinished(time_s=START_S + 1, stage="check", status="done", duration_s=1.0, headline="1,797 rows"),
        StageStarted(time_s=START_S + 1, stage="search", digest="b"),
        Progress(time_s=START_S + 1, stage="search", done=1, total=6, unit="trials"),
        trial("0", "done", 0.25, "current"),
        trial("1", "rejected", 0.9, "validation.loss is nan"),
        trial("2", "running", 0.125, "random", epoch=2),
    ]


def training() -> list[Record]:
    """Up to the middle of the training."""
    return [
        *searching(),
        StageFinished(
            time_s=START_S + 3, stage="search", status="done", duration_s=2.0, headline="learning_rate 0.003"
        ),
        StageStarted(time_s=START_S + 3, stage="train", digest="c"),
        *(
            TrainStep(
                time_s=START_S + 3 + update / 100,
                stage="train",
                epoch=1,
                epochs=20,
                update=update,
                updates=200,
                loss=1.0 / update,
                learning_rate=0.0024,
                samples_per_s=2134.0,
                eta_s=8.3,
            )
            for update in range(1, 11)
        ),
        EpochFinished(
            time_s=START_S + 4,
            stage="train",
            epoch=1,
            epochs=20,
            update=10,
            metrics={"train.loss": 0.4, "validation.loss": 0.3, "validation.accuracy": 0.97},
        ),
        Message(time_s=START_S + 4, level="warning", stage="train", text="one worker is slow"),
    ]


def finished() -> list[Record]:
    """To the end."""
    return [
        *training(),
        StageFinished(time_s=START_S + 9, stage="train", status="done", duration_s=6.0, headline="accuracy 98.9 %"),
        StageFinished(time_s=START_S + 9, stage="deploy", status="skipped", duration_s=0.0),
        EndpointReady(time_s=START_S + 9, name="digits", url="http://127.0.0.1:8000", version="1", replicas=1),
        RunFinished(time_s=START_S + 10, run="digits", duration_s=10.0, summary=SUMMARY),
    ]
