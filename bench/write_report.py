#!/usr/bin/env python3
"""Turns what bench/run.sh measured into docs/benchmarks.md. usage: write_report.py FOLDER OUT.md"""
import datetime
import json
import pathlib
import sys

folder, out = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])


def read(name):
    path = folder / name
    return json.loads(path.read_text()) if path.exists() and path.read_text().strip() else None


lines = ["# Benchmarks", "", "Written by `make bench` (bench/run.sh), down to the notes at the end, which it keeps.", ""]
first = read("resnet50-openvino.json")
machine = first["machine"] if first else {}
lines += [f"- date: {datetime.date.today().isoformat()}",
          f"- machine: {machine.get('processor')}, {machine.get('cores')} cores, {machine.get('memory_bytes', 0) / 2**30:.1f} GiB",
          "- medians over turns; in each turn the engine alone and every mode ran one after another",
          "- efficiency: rows/s over the engine alone on all devices of the same turn, with the 95 % interval of the median", ""]

lines += ["## What the runtime costs", "", "`build/bench_micro .deps/models/mlp.onnx`", "", "```text",
          (folder / "micro.txt").read_text().rstrip(), "```", ""]
null, mlp = read("queue-null.json"), read("queue-mlp.json")
if null and mlp:
    lines += ["The Python queue scheme (`bench/python_queue.py`) in the same run: null model, 38.5 MB a call: "
              f"{null['ms_per_call']:.1f} ms; MLP, 64 rows: {mlp['ms_per_call'] * 1e3:.0f} us.", ""]

for model, title in (("resnet50", "ResNet-50"), ("mobilenetv2", "MobileNetV2")):
    for backend in ("openvino", "onnxruntime"):
        table = read(f"{model}-{backend}.json")
        if not table:
            continue
        lines += [f"## {title}, fp32, {table['backend']['name']} {table['backend']['version']}", "",
                  f"`dpinfer bench {model}.onnx --backend {backend}`", "",
                  "| mode | devices | batch | rows/s | speed-up | efficiency | 95 % interval | p50 ms | p99 ms |",
                  "|---|---|---|---|---|---|---|---|---|"]
        for alone in table["engine_alone"]:
            lines.append(f"| engine alone | {alone['devices']} | {alone['batch_per_device']} | {alone['rows_per_s']:.1f} | | 1 | | | |")
            for row in table["rows"]:
                if row["batch_per_device"] != alone["batch_per_device"]:
                    continue
                low, high = row["efficiency_interval"]
                lines.append(f"| {row['mode']} | {row['devices']} | {row['batch_per_device']} | {row['rows_per_s']:.1f} | "
                             f"{row['speedup']:.2f} | {row['efficiency']:.3f} | {low:.3f} to {high:.3f} | {row['p50_ms']:.1f} | "
                             f"{row['p99_ms']:.1f} |")
        lines.append("")
    queue, ov = read(f"queue-{model}.json"), read(f"openvino-{model}.json")
    if queue and ov:
        lines += ["Peers on the same model, batch 8 per device, rows/s: "
                  f"the Python queue scheme with ONNX Runtime {queue['rows_per_s']:.1f}; "
                  f"one ONNX Runtime session on all threads {queue['one_session_all_threads_rows_per_s']:.1f}; "
                  f"OpenVINO's benchmark_app in throughput mode {ov['throughput_hint_rows_per_s']:.1f}; "
                  f"the same with one stream on all threads {ov['one_stream_all_threads_rows_per_s']:.1f}.", ""]
half = read("resnet50-bf16.json")
if half and first:
    full = next(r for r in first["rows"] if r["mode"] == "shard" and r["batch_per_device"] == 8)
    rate = half["rows"][0]["rows_per_s"]
    lines += ["## bf16", "", f"ResNet-50, OpenVINO, sharded, batch 8: {rate:.1f} rows/s in bf16, {full['rows_per_s']:.1f} in fp32: "
              f"{rate / full['rows_per_s']:.2f}x.", ""]
NOTES = "## Notes"
old = out.read_text() if out.exists() else ""
if NOTES in old:
    lines += [old[old.index(NOTES):].rstrip(), ""]
out.write_text("\n".join(lines))
print(f"wrote {out}")
