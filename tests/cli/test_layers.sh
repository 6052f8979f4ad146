#!/usr/bin/env bash
set -e
"$DPI_PYTHON" -B "$DPI_SRC/tools/check_layers.py"
"$DPI_PYTHON" -B "$DPI_SRC/tools/check_sizes.py"
