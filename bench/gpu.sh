#!/usr/bin/env bash
# What GPUs do with ResNet-50, fp16: `dpinfer bench` over one, two, ... all of them, and bench_gpu on the first.
# usage: gpu.sh WORK [BATCH]      WORK: folder for models, engines and results (WORK/bench-N.json, about 12 GB)
# Environment: DPI_GPU_BIN folder of the built programs (default build), DPI_PYTHON Python with onnx and numpy,
#              DPINFER_TENSORRT_LIBRARY libnvinfer.so.N where it is not found (bench_gpu needs it named),
#              SECONDS_EACH (1), REPEATS (7), ONE_GPU=0 to leave bench_gpu out, GPUS (what to compare, "1 2 4 ...").
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
bin=${DPI_GPU_BIN:-$root/build} python=${DPI_PYTHON:-python3} work=${1:?usage: gpu.sh WORK [BATCH]} batch=${2:-256}
mkdir -p "$work"
export DPINFER_CACHE=$work/cache TMPDIR=${TMPDIR:-$work}
[ -e "$work/resnet50.onnx" ] || "$python" -B "$root/tools/make_model.py" resnet50 "$work/resnet50.onnx"
[ -e "$work/resnet50-u8.onnx" ] ||
    "$python" -B "$root/tools/onnx_prepend_normalize.py" "$work/resnet50.onnx" "$work/resnet50-u8.onnx"
"$bin/dpinfer" devices
"$bin/dpinfer" compile "$work/resnet50-u8.onnx" --precision fp16 --batch "$batch" --backend-option "timing_cache=$work/timing"
count=$(nvidia-smi -L | wc -l)
for n in ${GPUS:-1 2 4 8}; do
    [ "$n" -le "$count" ] || continue
    echo "== $n of $count GPUs"
    "$bin/dpinfer" bench "$work/resnet50-u8.onnx" --precision fp16 --batch "$batch" --repeats "${REPEATS:-7}" \
        --devices "$(seq -s , -f 'cuda:%g' 0 $((n - 1)))" --seconds "${SECONDS_EACH:-1}" --json="$work/bench-$n.json"
done
[ "${ONE_GPU:-1}" = 1 ] || exit 0
"$python" - "$work/rows.npy" <<'P'
import sys
import numpy as np
np.save(sys.argv[1], np.random.default_rng(1).integers(0, 256, (51200, 224, 224, 3), dtype=np.uint8))
P
"$bin/bench_gpu" --model "$work/resnet50-u8.onnx" --cache "$work/cache" --batch "$batch" --rows "$work/rows.npy" \
    --turns "${REPEATS:-7}" --seconds "${SECONDS_EACH:-1}"
