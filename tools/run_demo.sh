#!/usr/bin/env bash
# The main job: real data through a real network on all devices, then what the hardware does with a large one.
set -euo pipefail
cd "$(dirname "$0")/.."
export DPINFER_CACHE="${DPINFER_CACHE:-$PWD/.deps/cache}"

echo "== 1,797 handwritten digits through a small classifier, sharded over all devices"
build/dpinfer run models/digits.onnx --input data/digits/images.npy --output build/digits.csv \
    --accuracy data/digits/labels.npy

model=.deps/models/resnet50.onnx
if [ ! -e $model ]; then
    echo "== writing ResNet-50 (seeded weights, calibrated BatchNorm) to $model"
    mkdir -p .deps/models
    .deps/venv/bin/python -B tools/make_model.py resnet50 $model
fi
echo "== ResNet-50 on this machine: one device, split, sharded"
build/dpinfer bench $model --batch 8,16 --seconds 2 --repeats 2 --json=build/resnet50.json
