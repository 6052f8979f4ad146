#!/usr/bin/env bash
# Builds the documents' site; a warning is an error. usage: tools/build_docs.sh PYTHON FOLDER
set -euo pipefail
cd "$(dirname "$0")/.."
case $2 in /*) folder=$2 ;; *) folder=$PWD/$2 ;; esac
PYTHONPATH=$PWD/.deps/docs${PYTHONPATH:+:$PYTHONPATH} "$1" -B -m sphinx --builder html --quiet --nitpicky --fail-on-warning \
    --keep-going --doctree-dir "$folder.trees" docs "$folder"
echo "the documents: $folder/index.html"
