#!/usr/bin/env bash
# Train in stages, each from the one before: launch/stages.sh WORKDIR CONFIG CONFIG ... [-- FLAG ...]
#
# Stage N trains in WORKDIR/<name of its config>; what follows -- is given to all of them, such as
# --config.base=/path/to/sdxl. The same command resumes; finished stages are skipped. A stage that
# is stopped (Ctrl-C, SIGTERM) saves a checkpoint, and the script ends with status 75.
set -euo pipefail

fail() {
    echo "error: $*" >&2
    echo "usage: launch/stages.sh WORKDIR CONFIG [CONFIG ...] [-- FLAG ...]" >&2
    exit 2
}
[[ $# -gt 0 && $1 != -* ]] || fail "give the folder of the runs first"
workdir=$1
shift
configs=() folders=()
while [[ $# -gt 0 && $1 != -- ]]; do
    [[ $1 != -* ]] || fail "$1: the training's options go after --"
    [[ -f $1 ]] || fail "$1: there is no such config"
    folder="$workdir/$(basename "${1%.py}")"
    [[ " ${folders[*]-} " != *" $folder "* ]] || fail "$1: an earlier stage trains in $folder already"
    configs+=("$1") folders+=("$folder")
    shift
done
[[ ${#configs[@]} -gt 0 ]] || fail "give the config of each stage after $workdir"
[[ $# -eq 0 ]] || shift
for flag in "$@"; do
    case $flag in
        --config | --config=* | --workdir* | --config.start_from=*) fail "$flag: each stage has its own" ;;
    esac
done

# A stage that was stopped must not become the start of the next one.
export PERSONGEN_UNFINISHED_STATUS=75
start=()
for number in "${!configs[@]}"; do
    config=${configs[number]} here=${folders[number]}
    echo "== $config in $here"
    "${PYTHON:-python}" -m persongen_jax.train --config "$config" --workdir "$here" "${start[@]}" "$@"
    start=("--config.start_from=$here")
done
