#!/usr/bin/env bash
# Train on Kubernetes: a JobSet of one pod per host, which uses all of the host's devices.
#
#   launch/kubernetes.sh --name NAME --image IMAGE --hosts 4 --devices 8 --claim CLAIM [options] \
#       -- --config configs/photomaker_bg.py --workdir /shared/run …
#
#   --claim CLAIM       a volume claim that all pods can mount (ReadWriteMany)
#   --mount FOLDER      its mount point (default /shared)
#   --resource NAME     the resource that --devices counts: nvidia.com/gpu (default) or google.com/tpu
#   --select KEY=VALUE  a label of the nodes; may be repeated. GKE's TPUs need
#                       cloud.google.com/gke-tpu-accelerator and cloud.google.com/gke-tpu-topology
#   --python PYTHON     in the image (default python)
#   --tries N           most restarts of all pods (default 10)
#   --dry-run           print the JobSet and apply nothing
#
# Arguments after "--" go to persongen_jax.train. The image has the package and its extra (gpu or tpu)
# installed; the cluster has the JobSet controller.
set -euo pipefail
cd "$(dirname "$0")"

fail() { echo "error: $*" >&2; exit 2; }
# shellcheck disable=SC2034  # accessed by name
name='' image='' hosts='' devices='' claim='' mount=/shared resource=nvidia.com/gpu
# shellcheck disable=SC2034
python=python tries=10 selector='' dry=''
while (($#)); do
    case $1 in
        --name | --image | --hosts | --devices | --claim | --mount | --resource | --python | --tries)
            (($# > 1)) || fail "$1 needs a value"
            printf -v "${1#--}" %s "$2"
            shift 2 ;;
        --select)
            [[ ${2-} == *=* ]] || fail "--select needs KEY=VALUE"
            selector+="${selector:+, }\"${2%%=*}\": \"${2#*=}\""
            shift 2 ;;
        --dry-run) dry=1; shift ;;
        --) shift; break ;;
        *) fail "$1 is not an option; see the head of $0" ;;
    esac
done
for option in name image claim; do
    [[ ${!option} ]] || fail "--$option is missing; see the head of $0"
done
for option in hosts devices tries; do
    [[ ${!option} =~ ^[0-9]+$ ]] || fail "--$option '${!option}': give a number"
done
[[ $name =~ ^[a-z]([a-z0-9-]*[a-z0-9])?$ ]] || fail "--name $name: lower-case letters, digits and hyphens"
[[ " $* " == *" --config"[\ =]* ]] || fail "give the training's options after --, --config first"
[[ " $* " == *" --workdir $mount/"* || " $* " == *" --workdir=$mount/"* ]] ||
    fail "give --workdir, a folder in $mount"

arguments=''
for argument in "$@"; do
    argument=${argument//\\/\\\\}
    arguments+="${arguments:+, }\"${argument//\"/\\\"}\""
done

template=$(<kubernetes.yaml)
for option in name image hosts devices claim mount resource python tries selector arguments; do
    template=${template//"@$option@"/"${!option}"}
done
if [[ $dry ]]; then
    printf '%s\n' "$template"
else
    printf '%s\n' "$template" | kubectl apply -f -
fi
