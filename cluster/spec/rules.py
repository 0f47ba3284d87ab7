"""The rules of a spec that tie its parts together and need no data: what `manta check` says beyond each key's own rule.

Invariant: `check`, `explain`, `run`, `submit` and the check stage ask the same questions here, so that a spec that
passes `manta check` fails later only for what the data, the host or the run itself have in them. All broken rules are
told at once, those of single keys among them.

Covered: the search (search_rules.py), shares of splits, rules that a source, a family, a task or an export cannot
follow, the batch over the workers, the metric of the best epoch. Not covered: whether files and columns exist (the
check stage), packages and ports (cluster/runtime/preflight.py).
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.errors import SpecError
from cluster.spec.batch_plan import check_division
from cluster.spec.data import SPLITS, CleanSpec, DataSpec, EncodeSpec, SplitSpec
from cluster.spec.load import apply_overrides, parse_yaml, problem, read_text, spec_error, validate_spec
from cluster.spec.run import RunSpec
from cluster.spec.search_rules import search_problems
from cluster.spec.train import EPOCH_METRICS, metric_task_rule, mode_of, most_workers

IMAGE_SOURCES = ("idx", "image_folder", "image_manifest")
ARRAY_SOURCES = (*IMAGE_SOURCES, "numpy")
TABLE_SOURCES = ("csv", "jsonl", "parquet", "text_files")
IMAGE_FAMILIES, TOKEN_FAMILIES = ("cnn", "timm", "torchvision"), ("transformer", "transformers")
SYNTHETIC = ("smote", "smotenc", "borderline_smote", "adasyn", "smote_under")
"""`data.balance.method`: those that make rows that nobody has seen."""


def load_checked(path: Path, overrides: Sequence[str] = ()) -> RunSpec:
    """`load_spec`, and the rules. Raises SpecError with all problems."""
    origin = str(path)
    return validate_checked(apply_overrides(parse_yaml(read_text(path), origin=origin), overrides), origin=origin)


def validate_checked(raw: Mapping[str, Any], *, origin: str) -> RunSpec:
    """`validate_spec`, and the rules. Raises one SpecError that lists every problem of keys and of rules."""
    try:
        spec = validate_spec(raw, origin=origin)
    except SpecError as error:
        found = [*error.problems, *_problems_of_the_rest(raw, error.problems)]
        raise spec_error(f"Cannot use the spec {origin}", found) from None
    check_spec(spec, origin=origin)
    return spec


def check_spec(spec: RunSpec, *, origin: str = "") -> None:
    """Raise one SpecError for all rules that the spec breaks."""
    if found := spec_problems(spec):
        raise spec_error(f"Cannot use the spec {origin}".rstrip(), found)


def spec_problems(spec: RunSpec) -> list[dict[str, Any]]:
    """Every broken rule."""
    return [
        *search_problems(spec),
        *_split_problems(spec.data),
        *_source_problems(spec),
        *_task_problems(spec),
        *_train_problems(spec),
    ]


def layout_of(data: DataSpec) -> str | None:
    """`image`, `array` or `table`, by the source's kind; None for a function, which may give either."""
    kind = data.source.kind
    if kind == "sklearn":
        return "image" if data.source.dataset == "digits" else "table"  # type: ignore[union-attr]
    if kind in IMAGE_SOURCES:
        return "image"
    return "array" if kind in ARRAY_SOURCES else "table" if kind in TABLE_SOURCES else None


def rules_of_tables(data: DataSpec) -> list[str]:
    """Keys of `data` that are set and that only columns can follow."""
    split, encode = data.split, data.encode.model_copy(update={"number": "auto"})  # decided for every source
    used = {
        "drop_columns": bool(data.drop_columns),
        "columns": bool(data.columns),
        "max_missing": data.max_missing != 1.0,
        "clean": data.clean != CleanSpec(),
        "encode": encode != EncodeSpec(),
        "select": data.select is not None,
        "split.group": split.group is not None,
        "split.time": split.time is not None,
        "split.column": split.column is not None,
        "balance.method": data.balance is not None and data.balance.method in SYNTHETIC,
    }
    return [f"data.{name}" for name, is_used in used.items() if is_used]


def by_hash_rule(split: SplitSpec, given: Collection[str]) -> str:
    """Why the shares cannot be met by each row's own hash; empty where they can. `given`: splits of the source."""
    shares = [getattr(split, name) for name in SPLITS[1:] if name not in given]
    if not split.by_hash or (split.train == "rest" and all(share <= 1 for share in shares)):
        return ""
    return "a row's split then follows from its own content, so only fractions can be met: data.split.train stays rest"


def _problems_of_the_rest(raw: Mapping[str, Any], found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rules that the spec breaks besides its wrong keys: asked of a copy without these, where that is a spec."""
    rest = copy.deepcopy(dict(raw))
    for item in found:
        *parents, key = item["path"].split(".")
        node: Any = rest
        for part in parents:
            node = node.get(part) if isinstance(node, dict) else None
        if isinstance(node, dict):
            node.pop(key, None)
    try:
        return spec_problems(validate_spec(rest))
    except SpecError:
        return []


def _split_problems(data: DataSpec) -> list[dict[str, Any]]:
    split = data.split
    if split.column is not None:
        return []
    given = ("test",) if getattr(data.source, "test_path", None) else ()
    if rule := by_hash_rule(split, given):
        return [problem("data.split.by_hash", True, rule)]
    others = {name: getattr(split, name) for name in SPLITS[1:] if name not in given}
    shares = {name: share for name, share in others.items() if share <= 1}
    if split.train != "rest" and split.train <= 1:
        shares["train"] = split.train
    total, least = round(sum(shares.values()), 9), split.train == "rest"
    if total < 1 or (total == 1 and not least):
        return []
    text = " + ".join(f"{share:g} {name}" for name, share in shares.items() if share)
    rule = f"the shares may not add up to more than all rows, and train needs some ({text} = {total:g})"
    return [problem("data.split", total, rule)]


def _source_problems(spec: RunSpec) -> list[dict[str, Any]]:
    """What the kind of source cannot follow."""
    data, layout, family = spec.data, layout_of(spec.data), spec.model.family
    found, source = [], f"a {data.source.kind} source"
    if layout in ("image", "array"):
        rule = f"it is a rule for tables, and the arrays of {source} have no columns"
        found += [problem(path, "a rule of columns", rule) for path in rules_of_tables(data)]
        if data.quality.fail_on:
            rule = f"the quality report covers tables, and {source} gives arrays"
            found.append(problem("data.quality.fail_on", data.quality.fail_on, rule))
    if layout == "table":
        if family in IMAGE_FAMILIES:
            rule = f"it takes images, and {source} gives a table: choose mlp"
            found.append(problem("model.family", family, rule))
        augment = spec.train.augment
        for name in ("shift_pixels", "cutmix_alpha"):
            if value := getattr(augment, name):
                rule = f"it changes images, and {source} gives a table: set it to 0"
                found.append(problem(f"train.augment.{name}", value, rule))
        if "normalize" in spec.export.fuse:
            rule = "normalize is for images and arrays: a table's columns are encoded by transforms.json"
            found.append(problem("export.fuse", list(spec.export.fuse), rule))
    if family in TOKEN_FAMILIES and data.encode.text != "token_ids":
        rule = "it takes token ids: set data.encode.text: token_ids, or choose another family"
        found.append(problem("model.family", family, rule))
    return found


def _task_problems(spec: RunSpec) -> list[dict[str, Any]]:
    """What a declared task cannot follow."""
    if spec.data.task == "auto":
        return []
    return [*_metric_problems(spec, spec.data.task), *_regression_problems(spec)]


def _metric_problems(spec: RunSpec, task: str) -> list[dict[str, Any]]:
    named = {"train.best.metric": spec.train.best.metric}
    if spec.search is not None:
        named["search.metric"] = spec.search.metric
    rules = {path: metric_task_rule(metric, task) for path, metric in named.items()}
    return [problem(path, named[path], rule) for path, rule in rules.items() if rule]


def _regression_problems(spec: RunSpec) -> list[dict[str, Any]]:
    if spec.data.task != "regression":
        return []
    used: dict[str, Any] = {
        "data.balance": spec.data.balance and spec.data.balance.method,
        "train.augment.mixup_alpha": spec.train.augment.mixup_alpha,
        "train.augment.cutmix_alpha": spec.train.augment.cutmix_alpha,
        "train.loss.class_weights": spec.train.loss.class_weights,
        "export.fuse": [part for part in spec.export.fuse if part != "normalize"],
    }
    rule = "data.task is regression, and only classes have this"
    return [problem(path, value, rule) for path, value in used.items() if value]


def _train_problems(spec: RunSpec) -> list[dict[str, Any]]:
    train, found = spec.train, []
    try:
        check_division(train)
    except SpecError as error:
        rule = f"{error.rule}, and train.workers is {most_workers(train.workers)}"  # type: ignore[arg-type]
        found.append(problem("train.batch_size_global", train.batch_size_global, rule))
    best = train.best
    if best.metric not in EPOCH_METRICS:
        rule = f"must be a metric of an epoch: {', '.join(EPOCH_METRICS)}"
        found.append(problem("train.best.metric", best.metric, rule, among=EPOCH_METRICS))
    elif best.mode not in ("auto", mode := mode_of(best.metric)):
        found.append(problem("train.best.mode", best.mode, f"{best.metric} is better when it is {mode}imal"))
    return [*found, *_optimizer_problems(spec)]


def _optimizer_problems(spec: RunSpec) -> list[dict[str, Any]]:
    """Constants that nothing uses, and what schedule-free training does by itself."""
    train, optimizer = spec.train, spec.train.optimizer
    searched = spec.search.space if spec.search is not None else {}
    found = []
    if "train.optimizer.name" not in searched:
        for name in optimizer.idle:
            own = (
                "a function of your own takes options" if optimizer.is_own else f"{optimizer.name} has no such constant"
            )
            found.append(problem(f"train.optimizer.{name}", getattr(optimizer, name), own))
    if optimizer.name == "schedule_free":
        if train.schedule.name != "constant" or train.schedule.plateau is not None:
            rule = "schedule_free averages in place of a schedule: set it to constant, with a warm-up, without plateau"
            found.append(problem("train.schedule.name", train.schedule.name, rule))
        if train.ema is not None:
            rule = "schedule_free evaluates an average of its own: leave out train.ema"
            found.append(problem("train.ema", "an average", rule))
    if train.schedule.eta_min is not None and train.schedule.eta_min > optimizer.learning_rate:
        rule = f"must not be above train.optimizer.learning_rate, which is {optimizer.learning_rate:g}"
        found.append(problem("train.schedule.eta_min", train.schedule.eta_min, rule))
    return found
