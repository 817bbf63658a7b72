#!/usr/bin/env bash
# Train on a Slurm cluster: one task per node, which uses all of the node's GPUs.
#
#   launch/slurm.sh --nodes 4 --gpus-per-node 8 [options] -- --config configs/photomaker_bg.py \
#       --workdir /shared/run …
#
#   --time LIMIT        hours:minutes:seconds; five minutes before the limit all processes save and exit
#   --partition NAME    --account NAME    --job-name NAME (default persongen_jax)
#   --python PYTHON     with the package installed, same path on all nodes (default python)
#   --tries N           requeue the job at most N times (default 10)
#   --dry-run           print the job's script and submit nothing
#
# Arguments after "--" go to persongen_jax.train. --workdir must be on a disk that all nodes share.
# A job that is preempted, reaches its time limit or loses a node is requeued and resumes from its
# last checkpoint.
set -euo pipefail

fail() { echo "error: $*" >&2; exit 2; }
nodes='' gpus_per_node='' time='' partition='' account='' job_name=persongen_jax
python=python tries=10 dry=''
while (($#)); do
    case $1 in
        --nodes | --gpus-per-node | --time | --partition | --account | --job-name | --python | --tries)
            (($# > 1)) || fail "$1 needs a value"
            option=${1#--}
            printf -v "${option//-/_}" %s "$2"
            shift 2 ;;
        --dry-run) dry=1; shift ;;
        --) shift; break ;;
        *) fail "$1 is not an option; see the head of $0" ;;
    esac
done
for option in nodes gpus_per_node tries; do
    [[ ${!option} =~ ^[0-9]+$ ]] || fail "--${option//_/-} '${!option}': give a number"
done
[[ " $* " == *" --config"[\ =]* ]] || fail "give the training's options after --, --config first"
[[ " $* " == *" --workdir"[\ =]* ]] || fail "give --workdir, on a disk that all nodes share"

script() {
    echo '#!/usr/bin/env bash'
    echo "#SBATCH --job-name=$job_name"
    echo "#SBATCH --nodes=$nodes"
    echo '#SBATCH --ntasks-per-node=1'
    echo "#SBATCH --gpus-per-node=$gpus_per_node"
    echo '#SBATCH --exclusive'
    echo '#SBATCH --requeue'
    echo '#SBATCH --open-mode=append'
    echo '#SBATCH --signal=TERM@300'
    [[ ! $time ]] || echo "#SBATCH --time=$time"
    [[ ! $partition ]] || echo "#SBATCH --partition=$partition"
    [[ ! $account ]] || echo "#SBATCH --account=$account"
    echo 'export PERSONGEN_UNFINISHED_STATUS=75'
    echo "srun --kill-on-bad-exit=1$(printf ' %q' "$python" -m persongen_jax.train "$@") && exit"
    echo "if ((\${SLURM_RESTART_COUNT:-0} < $tries)); then"
    # shellcheck disable=SC2016  # expanded by the job
    echo '    scontrol requeue "$SLURM_JOB_ID"'
    echo 'fi'
    echo 'exit 1'
}

if [[ $dry ]]; then
    script "$@"
else
    script "$@" | sbatch
fi
