#!/usr/bin/env bash
# First contact with real weights: what the files are, one image next to diffusers' pipeline where it
# is installed, the thesis' table 5.1, memory and minutes. Writes real_check.md to paste into an issue.
#
#   launch/real_check.sh SDXL_DIR [PHOTOMAKER_FILE ...] [--people FOLDER] [--clip DIR] [options]
#
# python -m benchmarks.evaluation.real_check --help lists the options; PYTHON names the interpreter.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}" exec "${PYTHON:-python3}" -m benchmarks.evaluation.real_check "$@"
