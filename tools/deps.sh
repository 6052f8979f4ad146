#!/usr/bin/env bash
# Installs what is missing: Debian packages by name, the inference libraries from PyPI by version and hash into .deps.
# usage: tools/deps.sh [docs|test|check]   docs: also what builds the documents' site; test: that, the oldest libraries and
# PyTorch; check: also compilers, checkers and a browser
set -euo pipefail
cd "$(dirname "$0")/.."

packages="gcc g++ libc6-dev make cmake ninja-build pkg-config libhwloc-dev libjansson-dev libxxhash-dev zlib1g-dev python3 python3-venv"
packages="$packages libvips-dev libarchive-dev" # images and tars: without them the rest builds all the same
[ "${1:-}" = test ] || [ "${1:-}" = check ] && packages="$packages libcmocka-dev spin"
[ "${1:-}" = check ] && packages="$packages clang clang-tidy clang-format libclang-rt-dev chromium"

missing=""
for package in $packages; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q '^install ok installed' || missing="$missing $package"
done
if [ -n "$missing" ]; then
    if [ "$(id -u)" != 0 ]; then
        echo "dpinfer needs Debian packages that are not installed; type: sudo apt-get install$missing" >&2
        exit 2
    fi
    echo "installing$missing"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq </dev/null
    # shellcheck disable=SC2086
    apt-get install -y -qq --no-install-recommends $missing </dev/null >/dev/null
fi

python=python3
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || python=/usr/bin/python3
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "dpinfer's model scripts need Python 3.11 or newer; $("$python" --version) was found" >&2
    exit 2
}

# install STAMP REQUIREMENTS COMMAND...: runs COMMAND unless STAMP says that it has run for these requirements. A venv whose
# Python has gone (or whose folder was moved) is no venv: its stamp does not count.
install() {
    local stamp=$1 requirements=$2
    shift 2
    cmp -s "$requirements" ".deps/$stamp" && [ -x .deps/venv/bin/python ] && return
    echo "installing $requirements into .deps"
    rm -f ".deps/$stamp"
    "$@"
    cp "$requirements" ".deps/$stamp"
}
pip_install() {
    local log=.deps/pip.log
    .deps/venv/bin/python -m pip install -q --disable-pip-version-check --require-hashes --only-binary :all: "$@" >"$log" 2>&1 && return
    local lacking
    lacking=$(sed -n 's/^ERROR: No matching distribution found for \([^ ]*\).*/\1/p' "$log" | head -n 1)
    if [ -n "$lacking" ]; then
        echo "there is no $lacking for $(.deps/venv/bin/python --version) on $(uname -m): put a Python 3.11, 3.12 or 3.13" \
            "first in PATH, then delete .deps" >&2
    else
        cat "$log" >&2
    fi
    exit 1
}
venv() {
    rm -rf .deps/venv .deps/tests.stamp
    "$python" -m venv .deps/venv
    pip_install -r requirements/engines.txt
}
oldest() {
    rm -rf .deps/oldest
    pip_install --no-deps --target .deps/oldest -r requirements/oldest.txt
}
tests() { pip_install --no-deps -r requirements/tests.txt; }
into() {
    rm -rf ".deps/$1"
    pip_install --no-deps --target ".deps/$1" -r "requirements/$1.txt"
}
mkdir -p .deps
install engines.stamp requirements/engines.txt venv
case "${1:-}" in docs | test | check) install docs.stamp requirements/docs.txt into docs ;; esac
case "${1:-}" in
test | check)
    install oldest.stamp requirements/oldest.txt oldest
    install tests.stamp requirements/tests.txt tests
    install package.stamp requirements/package.txt into package
    install report.stamp requirements/report.txt into report
    install arrow.stamp requirements/arrow.txt into arrow
    if [ "$(uname -m)" != x86_64 ]; then
        echo "PyTorch is pinned for x86-64 only: tests that need it are skipped"
    elif [ "${DPI_NO_TORCH:-}" = 1 ]; then
        echo "PyTorch is left out (DPI_NO_TORCH=1): tests that need it are skipped"
    else
        install torch.stamp requirements/torch.txt into torch # 1.8 GB to download, 4.2 GB on disk
    fi
    ;;
esac
