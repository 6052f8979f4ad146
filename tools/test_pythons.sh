#!/usr/bin/env bash
# The Python package on other versions of Python: builds the wheel once, and for each interpreter installs it into an
# empty environment with its engines and runs the suite there.
# usage: tools/test_pythons.sh [--torch REQUIREMENT] PYTHON...   as in: --torch torch==2.8.0 python3.9 python3.13
#        without --torch the tests that need PyTorch are skipped (it is 1.8 GB to download for each)
# Needs the packages that `make test` installs, and pip's index.
set -euo pipefail
cd "$(dirname "$0")/.."

torch=""
if [ "${1:-}" = --torch ]; then
    torch=$2
    shift 2
fi
[ $# -gt 0 ] || { sed -n '3,6s/^# *//p' "$0" >&2; exit 2; }
source=$PWD
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

PYTHONPATH=.deps/package .deps/venv/bin/python -m pip wheel -q --no-deps --no-build-isolation --no-index \
    -Cbuild-dir="$folder/build" -w "$folder" .
failed=0
for python in "$@"; do
    version=$("$python" -c 'import platform; print(platform.python_version())')
    environment=$folder/$version
    "$python" -m venv "$environment"
    "$environment/bin/pip" install -q --disable-pip-version-check "$folder"/dpinfer-*.whl \
        openvino 'onnxruntime>=1.20; python_version >= "3.10"' pytest tqdm ${torch:+"$torch" onnx onnxscript}
    packages=$("$environment/bin/pip" list --disable-pip-version-check --format=freeze |
        grep -E '^(numpy|openvino|onnxruntime|torch|onnx|onnxscript)==' | tr '\n' ' ')
    result=$(cd "$folder" && env -u PYTHONPATH -u DPINFER_LIBRARY -u DPINFER_WORKER DPI_SRC="$source" \
        DPI_BUILD="$("$environment/bin/python" -c 'import dpinfer, os; print(os.path.dirname(dpinfer.__file__))')" \
        "$environment/bin/python" -m pytest -q -p no:cacheprovider "$source/tests/python/suite" 2>&1) || failed=1
    echo "$result" | grep -E '^(FAILED|ERROR)' || true
    echo "Python $version: $(echo "$result" | tail -n 1) ($packages)"
    [ -z "${VERBOSE:-}" ] || echo "$result"
    rm -rf "$environment"
done
exit $failed
