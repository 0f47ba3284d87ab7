"""How the axes of a tensor map when it is reshaped."""

from __future__ import annotations


def match_axes(before: list[int], after: list[int]) -> list[tuple[list[int], list[int]]]:
    """Runs of axes with equal products: how a reshape maps axes."""
    runs, i, j = [], 0, 0
    while i < len(before) or j < len(after):
        ins: list[int] = []
        outs: list[int] = []
        left, right = 1, 1
        while (left != right or not (ins or outs)) and (i < len(before) or j < len(after)):
            if (left <= right and i < len(before)) or j >= len(after):
                left *= before[i]
                ins.append(i)
                i += 1
            else:
                right *= after[j]
                outs.append(j)
                j += 1
        while j < len(after) and (left != right or not outs):
            right *= after[j]
            outs.append(j)
            j += 1
        runs.append((ins, outs))
    return runs
