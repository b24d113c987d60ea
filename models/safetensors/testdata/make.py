"""Makes interop.safetensors with the reference implementation.

    pip install safetensors numpy
    python make.py

The element values are what interop_test.go expects.
"""
import numpy
from safetensors.numpy import save_file

save_file(
    {
        "weights": numpy.array([[1.5, -2.25, 0.0], [3.0, 1e-30, -0.0]], dtype=numpy.float64),
        "bias": numpy.array([0.5, -7.0], dtype=numpy.float32),
        "scale": numpy.array([1.0, -0.5, 65504.0, 5.960464477539063e-08], dtype=numpy.float16),
        "steps": numpy.array(-42, dtype=numpy.int64),
        "classes": numpy.array([-1, 2, 2147483647], dtype=numpy.int32),
        "codes": numpy.array([[-128, 127]], dtype=numpy.int8),
        "mask": numpy.array([0, 255], dtype=numpy.uint8),
        "empty": numpy.zeros((0, 4), dtype=numpy.float32),
    },
    "interop.safetensors",
    metadata={"format": "np", "note": "caf\u00e9 <&>"},
)
