#!/usr/bin/env bash
# What a slice costs without faults, now and before there was recovery: bench_slice of this tree and of commit BEFORE
# (default: the last one without src/runtime/recovery.c), in turn, TURNS (15) times. Prints both medians and the median
# difference with its 95 % interval (of the sign test). Wants a quiet machine.
set -euo pipefail
cd "$(dirname "$0")/.."
turns=${TURNS:-15}
before=${BEFORE:-$(git log --diff-filter=A --format=%H -- src/runtime/recovery.c | tail -n 1)^}
folder=$(mktemp -d)
trap 'git worktree remove --force "$folder/before"; rm -rf "$folder"' EXIT
git worktree add -q --detach "$folder/before" "$before"
cp bench/bench_slice.c bench/bench_kit.h "$folder/before/bench/"
for tree in "$PWD" "$folder/before"; do
    build=$folder/build-$([ "$tree" = "$PWD" ] && echo now || echo before)
    cmake -G Ninja -S "$tree" -B "$build" -DDPI_TESTS=OFF >/dev/null
    ninja -C "$build" --quiet bench_slice dpinfer-worker
done
for ((i = 0; i < turns; i++)); do
    for which in now before; do
        DPINFER_WORKER=$folder/build-$which/dpinfer-worker "$folder/build-$which/bench_slice" >>"$folder/$which.txt"
    done
done
python3 - "$folder/now.txt" "$folder/before.txt" <<'PYTHON'
import math, sys
now, before = ([float(line) for line in open(name)] for name in sys.argv[1:])
n = len(now)
middle = lambda values: sorted(values)[len(values) // 2]
difference = sorted(a - b for a, b in zip(now, before))
# the k-th smallest and largest enclose the median with at least 95 %
k, tail = 0, 0.0
while tail + math.comb(n, k) / 2**n <= 0.025:
    tail += math.comb(n, k) / 2**n
    k += 1
k = max(k, 1)
print(f"ns a slice: now {middle(now):.0f}, before recovery {middle(before):.0f}; difference {middle(difference):.0f}, "
      f"95 % interval {difference[k - 1]:.0f} to {difference[n - k]:.0f}, {n} turns")
PYTHON
