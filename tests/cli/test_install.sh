#!/usr/bin/env bash
# Installs into an empty prefix and builds the examples from outside, by pkg-config and by the CMake package.
set -euo pipefail
[ -z "${DPI_SANITIZE:-}" ] || exit 77 # programs built from outside do not carry the sanitizer
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cmake --install "$DPI_BUILD" --prefix "$work/prefix" >/dev/null
export PKG_CONFIG_PATH="$work/prefix/lib/pkgconfig:$work/prefix/lib/x86_64-linux-gnu/pkgconfig:$work/prefix/lib/aarch64-linux-gnu/pkgconfig"
export LD_LIBRARY_PATH="$work/prefix/lib:$work/prefix/lib/x86_64-linux-gnu:$work/prefix/lib/aarch64-linux-gnu"
unset DPINFER_WORKER # the installed library finds its own
export DPINFER_CACHE="$work/cache"
printf 'input x float32 N 8\noutput y float32 N 2\n' >"$work/m.sim"

# shellcheck disable=SC2046
cc -o "$work/one_batch" "$DPI_SRC/examples/one_batch.c" $(pkg-config --cflags --libs dpinfer)
"$work/one_batch" "$work/m.sim" 100 | grep -q '^100 rows on 1 devices'
printf '#include <dpinfer/dpinfer.h>\nint main() { dpi_options o = DPI_INIT(dpi_options); return o.struct_size ? 0 : 1; }\n' >"$work/cxx.cc"
if command -v c++ >/dev/null; then
    # shellcheck disable=SC2046
    c++ -std=c++11 -Wall -Wextra -Werror -o "$work/cxx" "$work/cxx.cc" $(pkg-config --cflags --libs dpinfer)
    "$work/cxx"
fi

mkdir "$work/outside"
cat >"$work/outside/CMakeLists.txt" <<'EOF'
cmake_minimum_required(VERSION 3.22)
project(outside C)
find_package(dpinfer REQUIRED)
add_executable(async_loop async_loop.c)
target_link_libraries(async_loop dpinfer::dpinfer)
EOF
cp "$DPI_SRC/examples/async_loop.c" "$work/outside/"
cmake -S "$work/outside" -B "$work/outside/build" -DCMAKE_PREFIX_PATH="$work/prefix" >/dev/null
cmake --build "$work/outside/build" >/dev/null
"$work/outside/build/async_loop" "$work/m.sim" 20 | grep -q '^20 batches'
"$work/prefix/bin/dpinfer" run "$work/m.sim" --input random:8:float32:1000 --output "$work/y.npy" --quiet
test -s "$work/y.npy"
"$work/prefix/bin/dpinfer" run "$work/m.sim" --input random:8:float32:1000 --quiet --json="$work/run.json"
"$work/prefix/bin/dpinfer" report "$work/run.json" -o "$work/run.html" 2>"$work/why" && test -s "$work/run.html" || grep -q matplotlib "$work/why"
for symbol in $(nm -D --defined-only "$work"/prefix/lib*/libdpinfer.so "$work"/prefix/lib/*/libdpinfer.so 2>/dev/null | awk 'NF == 3 {print $3}'); do
    case $symbol in dpi_* | DPINFER_0) ;; *) echo "the library exports $symbol"; exit 1 ;; esac
done
