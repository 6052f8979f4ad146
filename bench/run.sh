#!/usr/bin/env bash
# Measures everything and writes docs/benchmarks.md. Wants a quiet machine and about an hour; BATCHES=8 SECONDS_EACH=2.5
# takes a quarter of one.
set -euo pipefail
cd "$(dirname "$0")/.."
python=.deps/venv/bin/python
mkdir -p .deps/models build/bench
for name in resnet50 mobilenetv2 mlp; do
    [ -e .deps/models/$name.onnx ] || $python -B tools/make_model.py $name .deps/models/$name.onnx
done
repeats=${REPEATS:-15} seconds=${SECONDS_EACH:-3} batches=${BATCHES:-8,16,32}

echo "micro"
build/bench_micro .deps/models/mlp.onnx | tee build/bench/micro.txt
echo "queue scheme, null model and MLP"
$python -B bench/python_queue.py null --batch 32 >build/bench/queue-null.json
$python -B bench/python_queue.py .deps/models/mlp.onnx --batch 32 --shape 64 >build/bench/queue-mlp.json
for model in resnet50 mobilenetv2; do
    for backend in openvino onnxruntime; do
        echo "$model $backend"
        build/dpinfer bench .deps/models/$model.onnx --backend $backend --batch $batches --repeats "$repeats" \
            --seconds "$seconds" --json=build/bench/$model-$backend.json | tee build/bench/$model-$backend.txt
    done
    echo "$model, peers"
    $python -B bench/python_queue.py .deps/models/$model.onnx --batch 8 --seconds 8 >build/bench/queue-$model.json
    $python -B bench/openvino_peer.py .deps/models/$model.onnx --batch 8 --seconds 8 >build/bench/openvino-$model.json
done
if grep -q avx512_bf16 /proc/cpuinfo; then
    build/dpinfer bench .deps/models/resnet50.onnx --backend openvino --precision bf16 --batch 8 --repeats "$repeats" \
        --mode shard --seconds "$seconds" --json=build/bench/resnet50-bf16.json
fi
$python -B bench/write_report.py build/bench docs/benchmarks.md
