#!/usr/bin/env bash
# Collects a build and the small libraries it needs in one folder, for a GPU machine where nothing can be installed.
# usage: pack_gpu.sh BUILD OUT      then there: LD_LIBRARY_PATH=OUT/lib DPI_GPU_BIN=OUT/bin tools/test_gpu.sh
set -euo pipefail
build=${1:?} out=${2:?}
rm -rf "$out"
mkdir -p "$out/bin" "$out/lib"
for name in dpinfer dpinfer-worker libdpinfer.so bench_gpu test_conformance_tensorrt test_conformance_aoti test_gpu_kill; do
    if [ -e "$build/$name" ]; then strip -o "$out/bin/$name" "$build/$name"; fi
done
cp "$build"/dpinfer-tensorrt*.so "$out/bin/"
ldd "$out"/bin/* | awk '$2 == "=>" && $3 ~ /^\// {print $1, $3}' | sort -u |
    grep -vE '^(libc|libm|libdl|libpthread|librt|libstdc\+\+|libgcc_s|ld-linux[^ ]*)\.so' |
    while read -r name path; do cp -L "$path" "$out/lib/$name"; done
du -sh "$out"
