#!/usr/bin/env bash
# Train on a TPU pod slice: request it as a queued resource, run the same command on all of its
# workers, and resume from the last checkpoint when it is preempted.
#
#   launch/tpu_pod.sh --name NAME --project PROJECT --zone ZONE --type v5litepod-16 \
#       --runtime v2-alpha-tpuv5-lite [options] -- --config configs/photomaker_bg.py \
#       --workdir /shared/run …
#
#   --spot              use a preemptible slice, which costs less
#   --setup COMMANDS    run on every worker first: mount shared disks, install Python
#   --python PYTHON     3.11 or later, its name on the workers (default python3.11)
#   --tries N           start again at most N times (default 10)
#   --keep              leave the slice running at the end
#   --dry-run           print the commands once and run nothing
#
# Arguments after "--" go to persongen_jax.train. --workdir must be on a disk that all workers share.
# The committed state of this checkout is used.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { echo "error: $*" >&2; exit 2; }
name='' project='' zone='' type='' runtime='' setup=':' python=python3.11 tries=10
spot=() keep='' dry=''
while (($#)); do
    case $1 in
        --name | --project | --zone | --type | --runtime | --setup | --python | --tries)
            (($# > 1)) || fail "$1 needs a value"
            printf -v "${1#--}" %s "$2"
            shift 2 ;;
        --spot) spot=(--spot); shift ;;
        --keep) keep=1; shift ;;
        --dry-run) dry=1; shift ;;
        --) shift; break ;;
        *) fail "$1 is not an option; see the head of $0" ;;
    esac
done
for option in name project zone type runtime; do
    [[ ${!option} ]] || fail "--$option is missing; see the head of $0"
done
[[ $tries =~ ^[0-9]+$ ]] || fail "--tries $tries: give a number"
[[ " $* " == *" --config"[\ =]* ]] || fail "give the training's options after --, --config first"
[[ " $* " == *" --workdir"[\ =]* ]] || fail "give --workdir, on a disk that all workers share"

run() { # prints a command, and runs it unless --dry-run
    printf '+'; printf ' %q' "$@"; echo
    [[ $dry ]] || "$@"
}
where=(--project "$project" --zone "$zone")
queue=(gcloud compute tpus queued-resources)
vm=(gcloud compute tpus tpu-vm)

folder=$(mktemp -d -t persongen_jax.XXXXXX)
trap 'rm -rf "$folder"' EXIT

state() { # prints the request's state, nothing without a request; fails if gcloud cannot tell
    "${queue[@]}" describe "$name" "${where[@]}" --format 'value(state.state)' 2>"$folder/errors" ||
        grep -q NOT_FOUND "$folder/errors"
}

learn_state() { # into $now; networks recover after a while, expired credentials do not
    local failures=0
    until now=$(state); do
        if ((++failures == 3)); then
            cat "$folder/errors" >&2
            fail "gcloud could not describe $name $failures times in a row, see its message above;" \
                "what was asked for is still there: run this again when gcloud works"
        fi
        sleep 30
    done
}

request() {
    run "${queue[@]}" create "$name" --node-id "$name" "${where[@]}" \
        --accelerator-type "$type" --runtime-version "$runtime" "${spot[@]}"
}

give_back() { run "${queue[@]}" delete "$name" "${where[@]}" --force --quiet; }

wait_for_slice() {
    echo "waiting until $name is ACTIVE"
    [[ $dry ]] && return
    while learn_state; [[ $now != ACTIVE ]]; do
        case $now in '' | FAILED | SUSPENDED) return 1 ;; esac
        sleep 30
    done
}

archive=$folder/persongen_jax.tar.gz
git archive --format=tar.gz --output="$archive" HEAD

train="$setup && mkdir -p persongen_jax && tar -xzf persongen_jax.tar.gz -C persongen_jax"
train+=" && cd persongen_jax && $python -m venv .venv && .venv/bin/pip install -q -e '.[tpu,data]'"
train+=" && PERSONGEN_UNFINISHED_STATUS=75 exec .venv/bin/python -m persongen_jax.train$(printf ' %q' "$@")"

for ((try = 0; try <= tries; try++)); do
    now=''
    [[ $dry ]] || learn_state
    case $now in
        '') request ;;
        FAILED | SUSPENDED) give_back; request ;;
    esac
    if wait_for_slice &&
        run "${vm[@]}" scp "$archive" "$name:persongen_jax.tar.gz" "${where[@]}" --worker=all &&
        run "${vm[@]}" ssh "$name" "${where[@]}" --worker=all --command "$train"; then
        [[ $keep ]] || give_back
        exit 0
    fi
    # A preempted slice is gone for good. One that still exists failed for its own reason.
    sleep 60
    learn_state
    [[ $now == ACTIVE ]] && fail "the training ended with an error on $name, which keeps running"
    echo "$name was preempted or deleted; requesting it again (${try} of ${tries})"
done
fail "gave up after $tries tries"
