#!/usr/bin/env bash
# What only a GPU can show, in at most ten minutes, as one JSON: see gpu.py for the parts.
#
#   benchmarks/gpu.sh                                      # writes benchmarks/results/gpu.json
#   benchmarks/gpu.sh --dataset_dir data/cxr --labelled_split data/cxr-2pct.json --vae_path runs/cxr-vae   # twenty
#   benchmarks/gpu.sh --output gpu.json --tiny            # the same way at the smallest size, as without a GPU
set -euo pipefail
cd "$(dirname "$0")/.."
python=.venv/bin/python
[ -x "$python" ] || python=python3
exec "$python" benchmarks/gpu.py "$@"
