#!/usr/bin/env bash
# The whole job on a fresh machine: install into a virtual environment (first argument, default
# .venv), prepare photographs and a tiny random base, train PhotoMaker on them, paint with it.
set -euo pipefail
cd "$(dirname "$0")/.."
environment=${1:-.venv}
"${PYTHON:-python3}" -m venv "$environment"
"$environment/bin/pip" install --quiet --editable '.[demo]'
run() { echo "+ python $*"; "$environment/bin/python" "$@"; }

run -m data_pipeline.sample_photos --out data/sample_photos
run -m persongen_jax.weights.random_base --out weights/tiny-sdxl
run -m persongen_jax.train --config configs/first_light.py --workdir runs/first_light
run -m persongen_jax.generate --base weights/tiny-sdxl --method-weights runs/first_light \
    --reference data/sample_photos/astronaut.png --prompt "a photo of a woman img in a red hat" \
    --steps 20 --out outputs/first_light
