#!/usr/bin/env python3
"""OpenVINO's own benchmark_app on a model: its throughput mode, and one stream on all threads.

usage: openvino_peer.py MODEL.onnx --batch N [--seconds 5]      run by the Python that has the openvino package
"""
import argparse
import json
import pathlib
import re
import subprocess
import sys

import openvino as ov

parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("--batch", type=int, default=8)
parser.add_argument("--seconds", type=int, default=5)
args = parser.parse_args()
row = [d.get_length() for d in list(ov.Core().read_model(args.model).inputs[0].partial_shape)[1:]]
shape = "[" + ",".join(map(str, [args.batch, *row])) + "]"


def rate(*options):
    command = [str(pathlib.Path(sys.executable).with_name("benchmark_app")), "-m", args.model, "-d", "CPU", "-shape", shape,
               "-infer_precision", "f32", "-t", str(args.seconds), *options]
    said = subprocess.run(command, capture_output=True, text=True)
    found = re.search(r"Throughput:\s+([0-9.]+) FPS", said.stdout)
    if said.returncode or not found:
        sys.exit(f"benchmark_app: exit code {said.returncode}: {(said.stdout + said.stderr)[-600:]}")
    return float(found[1])


print(json.dumps({
    "throughput_hint_rows_per_s": rate("-hint", "throughput"),
    "one_stream_all_threads_rows_per_s": rate("-hint", "none", "-nstreams", "1"),
}))
