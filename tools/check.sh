#!/usr/bin/env bash
# The wide check: tests under sanitizers, fuzzers, linters, format, layers. Each step is named; all run; a summary ends it.
set -uo pipefail
cd "$(dirname "$0")/.."
python="$PWD/.deps/venv/bin/python"
seconds="${FUZZ_SECONDS:-60}"
failed=()

step() {
    local name=$1
    shift
    echo "== $name"
    if "$@"; then echo "== $name: good"; else
        echo "== $name: FAILED"
        failed+=("$name")
    fi
}
tests() { # FOLDER CMAKE-FLAGS...
    local folder=$1
    shift
    cmake -G Ninja -S . -B "$folder" -DDPI_PYTHON="$python" -DDPI_WERROR=ON "$@" >/dev/null &&
        ninja -C "$folder" --quiet && ctest --test-dir "$folder" --output-on-failure --no-tests=error -j2 --timeout 900
}
fuzz() {
    cmake -G Ninja -S . -B build-fuzz -DCMAKE_C_COMPILER=clang -DDPI_SANITIZE=address,undefined -DDPI_FUZZ=ON >/dev/null &&
        ninja -C build-fuzz --quiet || return 1
    local source one bad=0
    for source in tests/fuzz/fuzz_*.c; do
        one=build-fuzz/$(basename "$source" .c)
        echo "-- $(basename "$one"), $seconds s"
        mkdir -p "$one.corpus"
        "$one" -max_total_time="$seconds" -rss_limit_mb=2048 -verbosity=0 -print_final_stats=1 "$one.corpus" >"$one.log" 2>&1 || {
            tail -n 40 "$one.log"
            bad=1
            continue
        }
        grep -E 'number_of_executed_units' "$one.log"
    done
    return $bad
}
tidy() {
    cmake -G Ninja -S . -B build-tidy -DCMAKE_C_COMPILER=clang -DDPI_TESTS=OFF >/dev/null &&
        ninja -C build-tidy --quiet dpi_build_id && git ls-files 'src/*.c' | xargs -P2 -n4 clang-tidy -p build-tidy --quiet --warnings-as-errors='*'
}
format() { git ls-files '*.c' '*.h' | xargs clang-format --dry-run -Werror; }

step "tests with clang" tests build-clang -DCMAKE_C_COMPILER=clang
step "tests, address and undefined behaviour" tests build-asan -DDPI_SANITIZE=address,undefined
step "tests, threads" tests build-tsan -DDPI_SANITIZE=thread
step "a stop at every system call of a run" env DPI_STOPS=all ctest --test-dir build-asan --output-on-failure -R 'test_stops|test_run_faults'
step "fuzzers" fuzz
step "clang-tidy" tidy
step "format" format
step "layers" "$python" -B tools/check_layers.py
step "model of the protocol" tools/check_model.sh
step "sizes" "$python" -B tools/check_sizes.py

if [ ${#failed[@]} -gt 0 ]; then
    printf 'FAILED: %s\n' "${failed[@]}"
    exit 1
fi
echo "everything is good"
