# What `<!-- test: quick -->` runs before the block's commands: measurements take a moment instead of seconds.
dpinfer() {
    if [ "${1:-}" = bench ]; then command dpinfer "$@" --seconds 0.05 --repeats 1; else command dpinfer "$@"; fi
}
function build/dpinfer() { dpinfer "$@"; }
