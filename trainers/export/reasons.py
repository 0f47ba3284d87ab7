"""Why an export failed, in words of the module that was exported: which part, which line."""

from __future__ import annotations

import re

from torch import nn

from cluster.errors import ModelError

LINE = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<function>\w+)(?:\s*\n\s*(?P<code>[^\n]+))?')
OPERATOR = re.compile(r"(?:No ONNX function found for|No decompositions registered for)[^<]*<?OpOverload\(op='([^']+)'")
LIBRARY = ("/torch/", "/onnxscript/", "/onnx_ir/", "<frozen", "<eval_with_key>")
BATCH_SIGNS = ("Constraints violated", "specialized", "suggested fixes", "dynamic", "marked", "guard")


def export_error(error: BaseException, module: nn.Module) -> ModelError:
    """One ModelError for whatever torch's exporter raised, with the user's own line where one is known."""
    text = "\n".join(str(cause) for cause in _chain(error))
    where = _where(text)
    name = type(module).__name__
    operator = OPERATOR.search(text)
    if operator:
        return ModelError(
            f"Cannot export {name} to ONNX",
            found=f"operator {operator.group(1)} has no ONNX form{where}",
            rule="every operator of forward needs one",
            remedy="Write that line with other operators, or register a translation with torch.onnx.",
        )
    if any(sign in text for sign in BATCH_SIGNS):
        return ModelError(
            f"Cannot export {name} to ONNX",
            found=f"its forward depends on the number of rows or on values: {_first_reason(text)}{where}",
            rule="the batch axis must stay dynamic",
            remedy="Use operations that hold for every number of rows (x.flatten(1), not x.reshape(2, …)).",
        )
    return ModelError(f"Cannot export {name} to ONNX", found=f"{_first_reason(text)}{where}")


def _chain(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _where(text: str) -> str:
    own = [m for m in LINE.finditer(text) if not any(part in m.group("file") for part in LIBRARY)]
    if not own:
        return ""
    last = own[-1]
    code = f": `{last.group('code').strip()}`" if last.group("code") else ""
    return f" ({last.group('file')}:{last.group('line')} in {last.group('function')}{code})"


def _first_reason(text: str) -> str:
    for line in text.splitlines():
        line = line.strip().strip("\x1b[0123456789;m")
        if any(sign in line for sign in BATCH_SIGNS) and "Failed to export" not in line:
            return line[:300]
    return " ".join(text.split())[:300]
