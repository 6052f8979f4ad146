#!/usr/bin/env python3
"""Quantises a float32 ONNX model to int8 by Q/DQ pairs, as TensorRT and ONNX Runtime read them.

usage: quantize_onnx.py MODEL.onnx OUT.onnx ROWS.npy [--rows N]

Ranges of the activations are taken from the first N rows (default 200) of ROWS.npy, which must be real data. Weights
get a scale per channel; only convolutions and matrix products are quantised; all zero points are 0, as TensorRT demands. By
onnxruntime.quantization (static, QDQ format).
"""
import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quant_pre_process, quantize_static


class Rows(CalibrationDataReader):
    """Feeds rows in calls of at most 32 to the calibration. `rows` [N, ...]: the model's only input."""

    def __init__(self, name: str, rows: np.ndarray) -> None:
        self.calls = iter([{name: rows[i : i + 32]} for i in range(0, len(rows), 32)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.calls, None)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("out")
    parser.add_argument("rows_file", metavar="ROWS.npy")
    parser.add_argument("--rows", type=int, default=200)
    arguments = parser.parse_args()
    import onnxruntime

    inputs = onnxruntime.InferenceSession(arguments.model, providers=["CPUExecutionProvider"]).get_inputs()
    if len(inputs) != 1:
        print(f"{arguments.model} has {len(inputs)} inputs; this script quantises models with one", file=sys.stderr)
        return 2
    rows = np.load(arguments.rows_file, mmap_mode="r")[: arguments.rows]
    with tempfile.TemporaryDirectory() as folder:
        folded = str(Path(folder) / "folded.onnx")  # batch normalisation inside the convolutions
        quant_pre_process(arguments.model, folded, skip_symbolic_shape=True)
        quantize_static(folded, arguments.out, Rows(inputs[0].name, np.asarray(rows)), quant_format=QuantFormat.QDQ,
                        op_types_to_quantize=["Conv", "MatMul", "Gemm"], activation_type=QuantType.QInt8,
                        weight_type=QuantType.QInt8, per_channel=True,
                        extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False})
    print(f"{arguments.out}: int8 by Q/DQ pairs, ranges from {len(rows)} rows of {arguments.rows_file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
