"""Why an export failed, in words of the module that was exported: which part, which line.

Invariant: whatever torch's exporter raises becomes one ModelError; where the reason is an operator or a fixed batch, it
names the part of the module and the user's own line, as far as torch kept them.

Covered: operators without an ONNX form, a batch that forward fixes or bounds, control flow on values. Not covered:
modules that torch.export cannot trace for other reasons (their first reason is passed on).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

from torch import nn

from cluster.errors import ModelError

LINE = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<function>\w+)(?:\s*\n\s*(?P<code>[^\n]+))?')
OPERATOR = re.compile(r"No ONNX function found for[^<]*<OpOverload\(op='(?P<name>[^']+)'")
COLOR = re.compile(r"\x1b\[[0-9;]*m")
SUMMARY = "## Exception summary"
LIBRARY = ("/torch/", "/onnxscript/", "/onnx_ir/", "<frozen", "<eval_with_key>")
STATIC = re.compile(r"inferred a static shape of (?P<size>\d+) for dimension inputs\['?(?P<input>\w+)'?\]")
BATCH_SIGNS = ("Constraints violated", "specialized", "suggested fixes", "static shape", "data-dependent", "guard")
BATCH_RULE = "the batch axis must stay dynamic"
BATCH_REMEDY = "Use operations that hold for every number of rows (x.flatten(1), not x.reshape(2, …))."
TRACE_ERRORS = (RuntimeError, ValueError, TypeError, AttributeError, AssertionError)
"""What torch.export raises; its own classes are RuntimeErrors."""
ROWS_TRACED_MIN = 2  # torch may assume two rows and more without a reason in forward; parity tries one row

ROWS_ENDLESS = 1 << 31  # bounds above are those of the integer type

Retrace = Callable[[], list[Any]]
"""Traces the module again: its nodes as traced, then as decomposed. Called on the way to an error only."""


def export_error(error: BaseException, module: nn.Module, retrace: Retrace | None = None) -> ModelError:
    """One ModelError for whatever torch's exporter raised, with the user's own line where one is known."""
    text = COLOR.sub("", "\n".join(str(cause) for cause in _chain(error)))
    attempted = f"Cannot export {type(module).__name__} to ONNX"
    if operator := OPERATOR.search(text):
        name = operator.group("name")
        return ModelError(
            attempted,
            found=f"operator {name} has no ONNX form{_place_of(name, retrace)}",
            rule="every operator of forward needs one",
            remedy="Write that line with other operators, or register a translation with torch.onnx.",
        )
    if fixed := STATIC.search(text):
        return ModelError(
            attempted,
            found=f"its forward fixes axis 0 of '{_parameter(module, fixed.group('input'))}' to "
            f"{fixed.group('size')} rows{_where(text)}",
            rule=BATCH_RULE,
            remedy=BATCH_REMEDY,
        )
    if any(sign in text for sign in BATCH_SIGNS):
        return ModelError(
            attempted,
            found=f"its forward depends on the number of rows or on values: {_first_reason(text)}{_where(text)}",
            rule=BATCH_RULE,
            remedy=BATCH_REMEDY,
        )
    return ModelError(attempted, found=f"{_first_reason(text)}{_where(text)}")


def check_batch_range(exported: Any, module: nn.Module) -> None:
    """Refuse a trace that holds for some numbers of rows only: torch records such a bound without a warning.

    `if x.shape[0] > 3:` is traced as the branch that the example took. Raises ModelError.
    """
    least, most = _batch_range(exported)
    if least <= ROWS_TRACED_MIN and most is None:
        return
    bounds = f"{least} rows and more" if most is None else f"{least} to {most} rows"
    raise ModelError(
        f"Cannot export {type(module).__name__} to ONNX",
        found=f"its forward was traced for {bounds} only: it decides something by the number of rows",
        rule=BATCH_RULE,
        remedy="Take the condition on x.shape[0] out of forward.",
    )


def _batch_range(exported: Any) -> tuple[int, int | None]:
    """Least and largest number of rows for which a trace holds; None is no bound."""
    least, most = 0, None
    for node in exported.graph.nodes:
        value = node.meta.get("val")
        if node.op != "placeholder" or node.name not in exported.graph_signature.user_inputs or not value.dim():
            continue
        bounds = exported.range_constraints.get(getattr(getattr(value.shape[0], "node", None), "expr", None))
        if bounds is None:
            continue
        least = max(least, int(bounds.lower) if bounds.lower.is_Integer else 0)
        if bounds.upper.is_Integer and int(bounds.upper) < ROWS_ENDLESS:
            most = int(bounds.upper)
    return least, most


def _place_of(operator: str, retrace: Retrace | None) -> str:
    """` (part a.1, Inner; FILE:27 in forward: …)` of the first node with this operator, or nothing."""
    if retrace is None:
        return ""
    wanted = operator.rpartition(".")[2]
    try:
        nodes = retrace()
    except TRACE_ERRORS:  # the exporter had traced it in another way: the operator's name must do
        return ""
    for node in nodes:
        name = str(node.target).split(".")
        if node.op == "call_function" and len(name) > 1 and name[1].startswith(wanted):
            stack = list((node.meta.get("nn_module_stack") or {}).values())
            part, kind = stack[-1] if stack else ("", "")
            place = f"part {part or 'itself'}, {str(kind).rpartition('.')[2]}"
            return f" ({'; '.join((place, _line(node.meta.get('stack_trace') or '')))})"
    return ""


def _parameter(module: nn.Module, named: str) -> str:
    """Of forward: torch names it, from 2.14 on by its position."""
    names = list(inspect.signature(module.forward).parameters)
    return names[int(named)] if named.isdigit() and int(named) < len(names) else named


def _chain(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _where(text: str) -> str:
    line = _line(text)
    return f" ({line})" if line else ""


def _line(text: str) -> str:
    """The last line of a trace that is not a library's; a library's last line where there is no other."""
    lines = list(LINE.finditer(text))
    own = [m for m in lines if not any(part in m.group("file") for part in LIBRARY)] or lines
    if not own:
        return ""
    last = own[-1]
    code = f": `{last.group('code').strip()}`" if last.group("code") else ""
    return f"{last.group('file')}:{last.group('line')} in {last.group('function')}{code}"


def _first_reason(text: str) -> str:
    text = text.partition(SUMMARY)[2] or text
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    chosen = next((line for line in lines if any(sign in line for sign in BATCH_SIGNS)), " ".join(lines))
    return re.sub(r"<class '[\w.]*?(\w+)'>", r"\1", chosen)[:300]
