"""How static quantization is done for a CPU and for TensorRT."""

from __future__ import annotations

from pathlib import Path

from trainers.compress.cpu import has_vnni
from trainers.compress.presets import cpu_preset, tensorrt_preset


def test_weights_get_seven_bits_where_the_cpu_lacks_vnni(tmp_path: Path) -> None:
    for flags, vnni in (("fpu avx2", False), ("fpu avx512_vnni", True)):
        (tmp_path / "cpuinfo").write_text(f"model name\t: x\nflags\t\t: {flags}\n")
        assert has_vnni(tmp_path / "cpuinfo") is vnni
    assert not has_vnni(tmp_path / "absent")
    assert cpu_preset(vnni=False).reduce_range
    assert not cpu_preset(vnni=True).reduce_range


def test_the_tensorrt_preset_is_symmetric_and_touches_weighted_layers_only() -> None:
    preset = tensorrt_preset()
    assert preset.activation == preset.weight
    assert preset.options["ActivationSymmetric"]
    assert not preset.options["QuantizeBias"]
    assert set(preset.op_types) == {"Conv", "Gemm", "MatMul"}
