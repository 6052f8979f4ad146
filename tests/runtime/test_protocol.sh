#!/usr/bin/env bash
# The protocol's model, a few small configurations of it; `make model` runs them all.
exec "$DPI_SRC/tools/check_model.sh" quick
