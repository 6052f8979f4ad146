#!/usr/bin/env bash
# The tests that need an NVIDIA GPU and TensorRT. Exits 77 with the reason where they are not there.
# usage: test_gpu.sh [STEP...]      all steps by default
# Environment: DPI_GPU_BIN folder of the built programs (default build-test), DPI_PYTHON Python with onnx and numpy,
#              DPINFER_TENSORRT_LIBRARY libnvinfer.so.N where it is not found, DPI_GPU_WORK folder for what is made.
set -uo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
bin=${DPI_GPU_BIN:-$root/build-test} python=${DPI_PYTHON:-python3}
work=${DPI_GPU_WORK:-$(mktemp -d)}
mkdir -p "$work"
export DPINFER_CACHE=$work/cache DPI_SRC=$root DPI_BUILD=$work DPI_PYTHON=$python
dpinfer=$bin/dpinfer
failures=0

if ! "$dpinfer" devices --json >"$work/devices.json" || ! "$python" - "$work/devices.json" <<'P'; then
import json, sys
facts = json.load(open(sys.argv[1]))
trt = next(b for b in facts["backends"] if b["backend"] == "tensorrt")
if not trt["available"]:
    print("the GPU tests are skipped:", trt["reason"])
sys.exit(not trt["available"])
P
    exit 77
fi

say() { printf '%s\n' "$*"; }
check() { # NAME COMMAND...: the command's output is shown when it fails
    local name=$1
    shift
    local began=$SECONDS
    if "$@" >"$work/$name.log" 2>&1; then
        say "ok      $name ($((SECONDS - began)) s)"
    else
        say "FAILED  $name ($((SECONDS - began)) s, exit $?)"
        tail -n 25 "$work/$name.log" | cut -c1-600
        failures=$((failures + 1))
    fi
}
used_mib() { nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits | head -1; }
freed() { # waits until the GPU's memory is as free as before
    for _ in $(seq 50); do
        [ "$(used_mib)" -le $(($1 + 64)) ] && return 0
        sleep 0.2
    done
    say "GPU memory: $(used_mib) MiB used, $1 before"
    return 1
}
refused() { # CODE WORD COMMAND...: ends with that code and names the word; GPU memory is free afterwards
    local code=$1 word=$2 before
    before=$(used_mib)
    shift 2
    "$@" >"$work/refused.log" 2>&1
    local got=$?
    cat "$work/refused.log"
    [ $got -eq "$code" ] && grep -q -- "$word" "$work/refused.log" && freed "$before"
}

step_devices() { check devices "$dpinfer" devices; cat "$work/devices.log"; }
step_conformance() { check conformance timeout 200 "$bin/test_conformance_tensorrt"; tail -n 3 "$work/conformance.log"; }
step_digits() {
    for precision in model fp16; do
        check "digits-$precision" "$dpinfer" run "$root/models/digits.onnx" --backend tensorrt --precision $precision \
            --input "$root/data/digits/images.npy" --output "$work/digits.npy" --accuracy "$root/data/digits/labels.npy"
        tail -n 2 "$work/digits-$precision.log"
    done
}
spread_files() {
    [ -e "$work/rows.npy" ] && return
    "$python" "$root/tools/make_model.py" spread "$work/spread.onnx"
    "$python" "$root/tools/make_spread_rows.py" "$work/rows.npy" --rows 2000 --dtype float32 --layout NCHW
}
run_spread() { # OUT ARGUMENTS...
    local out=$1
    shift
    "$dpinfer" run "$work/spread.onnx" --input "$work/rows.npy" --output "$out" "$@"
}
compare() { # WANT GOT LIMIT [TOP1]: largest difference over max |want|, least agreement of the top class
    "$python" - "$@" <<'P'
import sys, numpy as np
want, got = np.load(sys.argv[1]), np.load(sys.argv[2])
worst = float(np.abs(want - got).max() / np.abs(want).max())
top = float((want.argmax(1) == got.argmax(1)).mean())
print(f"largest difference {worst:.2e} of max |y|, top-1 agreement {top:.4f} over {len(want)} rows, bit-identical {(want == got).all()}")
sys.exit(worst > float(sys.argv[3]) or top < float((sys.argv + ["0"])[4]))
P
}
step_values() {
    spread_files >"$work/spread.log" 2>&1
    check cpu run_spread "$work/cpu.npy" --backend onnxruntime
    check fp32 run_spread "$work/fp32.npy" --backend tensorrt --batch 64
    check fp32-values compare "$work/cpu.npy" "$work/fp32.npy" 1e-3
    check fp16 run_spread "$work/fp16.npy" --backend tensorrt --batch 64 --precision fp16
    check fp16-values compare "$work/cpu.npy" "$work/fp16.npy" 2e-2
    check tf32 run_spread "$work/tf32.npy" --backend tensorrt --batch 64 --precision tf32
    check tf32-values compare "$work/cpu.npy" "$work/tf32.npy" 5e-3
    cat "$work"/fp32-values.log "$work"/fp16-values.log "$work"/tf32-values.log
    check fp16-again run_spread "$work/again.npy" --backend tensorrt --batch 64 --precision fp16
    check same-again cmp "$work/fp16.npy" "$work/again.npy"
    check two-workers run_spread "$work/two.npy" --backend tensorrt --batch 64 --precision fp16 --devices 'cuda:0*2'
    check same-on-two cmp "$work/fp16.npy" "$work/two.npy"
    check graphs run_spread "$work/graphs.npy" --backend tensorrt --batch 64 --precision fp16 --backend-option cuda_graphs=1
    check graphs-values compare "$work/fp16.npy" "$work/graphs.npy" 5e-3
    check spin run_spread "$work/spin.npy" --backend tensorrt --batch 64 --precision fp16 --backend-option wait=spin
    "$dpinfer" cache list
}
# int8: a network quantised by Q/DQ pairs, as onnxruntime.quantization writes them; symmetric, as TensorRT wants it.
step_int8() {
    spread_files >"$work/spread.log" 2>&1
    [ -e "$work/cpu.npy" ] || run_spread "$work/cpu.npy" --backend onnxruntime >/dev/null
    check quantise "$python" "$root/tools/quantize_onnx.py" "$work/spread.onnx" "$work/spread-int8.onnx" "$work/rows.npy"
    check int8 "$dpinfer" run "$work/spread-int8.onnx" --backend tensorrt --batch 64 --input "$work/rows.npy" \
        --output "$work/int8.npy"
    check int8-cpu "$dpinfer" run "$work/spread-int8.onnx" --backend onnxruntime --batch 64 --input "$work/rows.npy" \
        --output "$work/int8-cpu.npy"
    check int8-values compare "$work/int8-cpu.npy" "$work/int8.npy" 0.5 0.95
    check int8-fp32 compare "$work/cpu.npy" "$work/int8.npy" 0.5 0.95
    cat "$work"/int8-values.log "$work"/int8-fp32.log
}
# Several GPUs: bit-identical on one and on all, each worker on its own, and the table.
step_several() {
    local gpus
    gpus=$(nvidia-smi -L | wc -l)
    [ "$gpus" -gt 1 ] || { say "skipped: one GPU"; return; }
    spread_files >"$work/spread.log" 2>&1
    check one run_spread "$work/one.npy" --backend tensorrt --batch 64 --precision fp16 --devices cuda:0
    check all run_spread "$work/all.npy" --backend tensorrt --batch 64 --precision fp16
    check same-on-all cmp "$work/one.npy" "$work/all.npy"
    check own-gpu own_gpus "$gpus"
    cat "$work/own-gpu.log"
    CUDA_VISIBLE_DEVICES=1 check second-only run_spread "$work/second.npy" --backend tensorrt --batch 64 --precision fp16
    check same-on-second cmp "$work/one.npy" "$work/second.npy"
    local uuid
    uuid=$(nvidia-smi -i 1 --query-gpu=uuid --format=csv,noheader)
    check by-uuid run_spread "$work/uuid.npy" --backend tensorrt --batch 64 --precision fp16 --devices "cuda:$uuid"
    check same-by-uuid cmp "$work/one.npy" "$work/uuid.npy"
}
own_gpus() { # every GPU has one compute process, and no process is on two
    "$dpinfer" run "$work/spread.onnx" --backend tensorrt --batch 64 --precision fp16 \
        --input random:3x64x64:float32:400000 --output none &
    local caller=$! apps code
    for _ in $(seq 60); do
        apps=$(nvidia-smi --query-compute-apps=gpu_uuid,pid --format=csv,noheader)
        [ "$(printf '%s\n' "$apps" | grep -c .)" -ge "$1" ] && break
        sleep 0.1
    done
    printf '%s\n' "$apps"
    wait $caller
    code=$?
    [ $code -eq 0 ] && [ "$(printf '%s\n' "$apps" | cut -d, -f1 | sort -u | wc -l)" -eq "$1" ] &&
        [ "$(printf '%s\n' "$apps" | cut -d, -f2 | sort | uniq -d | wc -l)" -eq 0 ]
}
step_refusals() {
    spread_files >"$work/spread.log" 2>&1
    [ -e "$work/cpu.npy" ] || run_spread "$work/cpu.npy" --backend onnxruntime
    "$python" "$root/tools/make_model.py" unsupported "$work/unsupported.onnx" >/dev/null
    check unsupported refused 2 Nonexistent "$dpinfer" inspect "$work/unsupported.onnx" --backend tensorrt
    "$dpinfer" compile "$work/spread.onnx" --backend tensorrt --batch 8 >/dev/null
    local entry
    entry=$(ls -t "$DPINFER_CACHE"/*.engine | head -1)
    tail -c +4097 "$entry" >"$work/spread.engine"
    check engine-file "$dpinfer" run "$work/spread.engine" --input "$work/rows.npy" --output "$work/engine.npy"
    check engine-values compare "$work/cpu.npy" "$work/engine.npy" 1e-3
    head -c 100000 "$work/spread.engine" >"$work/cut.engine"
    check broken "$python" "$root/tools/try_broken.py" "$dpinfer" "$root/models/digits.onnx" --backend tensorrt
    check engine-cut refused 2 cut.engine "$dpinfer" inspect "$work/cut.engine"
    check huge-batch refused 1 'lower --batch' "$dpinfer" inspect "$work/spread.onnx" --backend tensorrt --batch 4000000
    if "$python" -c 'import torch' 2>/dev/null; then check out-of-memory crowded; fi
    check no-such-gpu refused 2 cuda:7 "$dpinfer" inspect "$work/spread.onnx" --backend tensorrt --devices cuda:7
    check not-a-cpu refused 2 cpu:0 "$dpinfer" inspect "$work/spread.onnx" --backend tensorrt --devices cpu:0
    CUDA_VISIBLE_DEVICES='' check hidden refused 2 cuda:0 "$dpinfer" inspect "$work/spread.onnx" --backend tensorrt --devices cuda:0
    cat "$work"/{unsupported,broken,engine-cut,huge-batch,out-of-memory,no-such-gpu,hidden}.log 2>/dev/null | cut -c1-500
}
crowded() { # another program holds all but 600 MiB of the GPU
    "$python" - "$work" <<'P' &
import sys, time, torch
free, _ = torch.cuda.mem_get_info()
held = torch.empty(free - (600 << 20), dtype=torch.uint8, device="cuda")
torch.cuda.synchronize()
open(sys.argv[1] + "/held", "w").close()
time.sleep(60)
P
    local holder=$!
    for _ in $(seq 100); do [ -e "$work/held" ] && break; sleep 0.2; done
    "$dpinfer" run "$work/spread.onnx" --backend tensorrt --batch 64 --input "$work/rows.npy" --output none >"$work/crowded.log" 2>&1
    local code=$?
    kill $holder
    wait $holder 2>/dev/null
    rm -f "$work/held"
    cat "$work/crowded.log"
    [ $code -eq 1 ] || [ $code -eq 2 ] && grep -q 'MiB' "$work/crowded.log"
}
killed() {
    local before
    before=$(used_mib)
    "$dpinfer" run "$work/spread.onnx" --backend tensorrt --batch 64 --input random:3x64x64:float32:200000 --output none &
    local caller=$! worker
    sleep 3
    worker=$(pgrep -P $caller dpinfer-worker | head -1)
    kill -9 "$worker"
    wait $caller
    [ $? -eq 0 ] && freed "$before"
}
step_kill() {
    spread_files >"$work/spread.log" 2>&1
    run_spread "$work/x.npy" --backend tensorrt --batch 64 >/dev/null 2>&1
    check kill killed
    tail -n 1 "$work/kill.log"
    check kill-writes "$bin/test_gpu_kill" "$work/spread.onnx"
    tail -n 8 "$work/kill-writes.log"
}
step_sanitizer() {
    local tool
    tool=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null) || { say "skipped: no compute-sanitizer"; return; }
    check sanitizer timeout 400 "$tool" --tool memcheck --target-processes all --error-exitcode 9 "$dpinfer" run \
        "$root/models/digits.onnx" --backend tensorrt --input "$root/data/digits/images.npy" --rows 0:256 --output none
    grep -E "ERROR SUMMARY|=========" "$work/sanitizer.log" | tail -n 8
}

for step in "${@:-devices conformance digits values int8 several refusals kill sanitizer}"; do
    for one in $step; do "step_$one"; done
done
say "$failures failed"
[ $failures -eq 0 ]
