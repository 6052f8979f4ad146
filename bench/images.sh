#!/usr/bin/env bash
# Measures images on this machine's CPUs: bench/images.py with what it needs (torchvision, Pillow, photographs of
# scikit-image and scikit-learn), installed into .deps/images at the versions and hashes of requirements/images.txt.
set -euo pipefail
cd "$(dirname "$0")/.."
tools/deps.sh test
if ! cmp -s requirements/images.txt .deps/images.stamp; then
    rm -rf .deps/images
    .deps/venv/bin/python -m pip install -q --disable-pip-version-check --require-hashes --only-binary :all: --no-deps \
        --target .deps/images -r requirements/images.txt
    cp requirements/images.txt .deps/images.stamp
fi
PYTHONPATH=.deps/images:.deps/torch exec .deps/venv/bin/python -B bench/images.py "$@"
