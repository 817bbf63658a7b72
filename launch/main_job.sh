#!/usr/bin/env bash
# The main job on a fresh machine: install into a virtual environment (first argument, default
# .venv), train the thesis' final method on the embedded miniature, generate an unseen person.
set -euo pipefail
cd "$(dirname "$0")/.."
environment=${1:-.venv}
"${PYTHON:-python3}" -m venv "$environment"
"$environment/bin/pip" install --quiet --editable '.[log]'
run() { echo "+ python $*"; "$environment/bin/python" "$@"; }

run -m persongen_jax.train --config configs/mini/photomaker_bg.py --workdir runs/mini/photomaker_bg
run -m data_pipeline.people --out data/strangers --split out_of_train --identities 1 --pictures 2
run -m persongen_jax.generate --base persongen_jax/assets/sdxl \
    --method-weights runs/mini/photomaker_bg --reference data/strangers/images/*_000.png \
    --prompt "a photo of a person img looking at the camera" \
    --background "a snowy night with the moon to the left" --body "wearing a red suit" \
    --steps 30 --start_merge_step 3 --guidance-scale 4 --images-per-prompt 4 --out outputs/main_job
