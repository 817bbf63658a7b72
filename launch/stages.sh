#!/usr/bin/env bash
# Train in stages, each from the one before: launch/stages.sh WORKDIR CONFIG CONFIG ... [-- FLAG ...]
#
# Stage N trains in WORKDIR/<name of its config>; what follows -- is given to all of them, such as
# --config.base=/path/to/sdxl. The same command resumes; finished stages are skipped.
set -euo pipefail
[ $# -ge 2 ] || { echo "usage: launch/stages.sh WORKDIR CONFIG [CONFIG ...] [-- FLAG ...]" >&2; exit 2; }
workdir=$1
shift
configs=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do configs+=("$1"); shift; done
[ $# -gt 0 ] && shift
before=""
for config in "${configs[@]}"; do
    here="$workdir/$(basename "${config%.py}")"
    start=()
    [ -n "$before" ] && start=("--config.start_from=$before")
    echo "== $config in $here"
    "${PYTHON:-python}" -m persongen_jax.train --config "$config" --workdir "$here" "${start[@]}" "$@"
    before="$here"
done
