#!/usr/bin/env python3
"""OpenVINO by itself, as its benchmark_app runs it: throughput hint (streams on all cores) or one stream on all threads.

usage: openvino_peer.py MODEL.onnx --batch N [--seconds 5]
"""
import argparse
import json
import time

import numpy as np
import openvino as ov


def rate(core, model, x, config, seconds):
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", **config})
    queue = ov.AsyncInferQueue(compiled)
    for _ in range(len(queue)):
        queue.start_async({0: x})
    queue.wait_all()
    began, calls = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        queue.start_async({0: x})
        calls += 1
    queue.wait_all()
    return calls * len(x) / (time.perf_counter() - began)


parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("--batch", type=int, default=8)
parser.add_argument("--seconds", type=float, default=5)
args = parser.parse_args()
core = ov.Core()
network = core.read_model(args.model)
network.reshape([args.batch, *[d.get_length() for d in list(network.inputs[0].partial_shape)[1:]]])
data = np.random.default_rng(1).standard_normal([d.get_length() for d in network.inputs[0].partial_shape]).astype(np.float32)
print(json.dumps({
    "throughput_hint_rows_per_s": rate(core, network, data, {"PERFORMANCE_HINT": "THROUGHPUT"}, args.seconds),
    "one_stream_all_threads_rows_per_s": rate(core, network, data, {"NUM_STREAMS": "1"}, args.seconds),
}))
