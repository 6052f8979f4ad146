# shellcheck shell=bash
# What `<!-- test: quick -->` runs before the block's commands: measurements take a moment instead of seconds,
# and few rows, for shard mode writes them to a file first.
dpinfer() {
    if [ "${1:-}" = bench ]; then command dpinfer "$@" --rows 256 --seconds 0.05 --repeats 1; else command dpinfer "$@"; fi
}
function build/dpinfer() { dpinfer "$@"; }
