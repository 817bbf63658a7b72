#!/usr/bin/env bash
# Check and time everything on a machine with one GPU: layers, training, sampling, beside torch.
#
#   benchmarks/gpu.sh [PART...]      parts: all (default), kernels, train, settings, versus, sample
#
# Run from the repository's root. Results (JSON, tables, the logs packed) go to a folder for each part
# in $OUT, by default runs/gpu, while they are made. Each part ends by itself in time for one call of
# ten minutes; "all" is the shortest form of kernels, versus and sample together, the others go
# deeper, one part a call. It ends with 1 where a kernel disagrees or a bench ends with an error.
#
# Needs jax with CUDA, flax, optax, orbax, transformers, Pillow; for "versus", "sample" and "all" also
# torch with CUDA, diffusers (which imports requests) and peft. Where the machine has no network,
# bring the missing ones as wheels. On a machine with network, for Python 3.12 there:
#
#   python3 -m pip download --no-deps --only-binary=:all: --python-version 3.12 -d .whl \
#       ml_collections==1.1.0 diffusers==0.42.1 pillow \
#       requests charset_normalizer idna urllib3 certifi
#   (and peft==0.21.2 accelerate==1.15.0 where peft is missing)
#
# .whl beside this checkout is installed into /tmp/site first.
set -euo pipefail
export PYTHONUNBUFFERED=1
OUT=${OUT:-runs/gpu}
mkdir -p "$OUT"
python=${PYTHON:-python3}
failed=()
began=0     # of the part, in seconds of this script; the first one has the installing in it
seconds=580 # that a part may take

if compgen -G ".whl/*.whl" >/dev/null; then
  "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade \
    --target /tmp/site .whl/*.whl
  export PYTHONPATH="/tmp/site${PYTHONPATH:+:$PYTHONPATH}"
fi
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv || true

bench() { # FOLDER WHAT LIMIT ARGUMENTS...: for LIMIT seconds, or those that the part has left
  local folder=$OUT/$1 name=$1 what=$2 limit=$3 left=$((began + seconds - SECONDS))
  shift 3
  ((limit <= left)) || limit=$((left > 1 ? left : 1))
  "$python" -m persongen_jax.bench "$what" --config configs/base.py --out "$folder" \
    --limit "$limit" "$@" || failed+=("$name")
  # Packed, since few files may come back.
  (cd "$folder" && tar -czf logs.tar.gz --remove-files ./*.log) || true
}

kernels() {
  timeout 100 "$python" -m benchmarks.kernels --json "$OUT/kernels/kernels.json" ||
    failed+=(kernels)
}

for part in "${@:-all}"; do
  case $part in
    all)
      kernels
      bench versus train 330 --rounds 3 --versus torch --variants compile+channels_last \
        --row size=512 batch=32 --row size=1024 batch=8
      bench sample sample 160 --rounds 2 --row size=1024 batch=4,1 vae_dtype=bfloat16
      ;;
    kernels) kernels ;;
    train) # how large a batch pays
      bench train train 560 --rounds 3 --row size=512 batch=32,48 \
        --row size=1024 batch=8,12
      ;;
    settings) # what each setting gives or costs
      bench settings train 560 --rounds 3 --row size=512 batch=32 \
        --row size=512 batch=32 cached=false --row size=512 batch=32 attention=xla \
        --row size=512 batch=32 xla=no_triton_gemm --row size=512 batch=64 remat=true
      ;;
    versus) # all of torch's settings
      bench versus train 560 --rounds 3 --versus torch --row size=512 batch=32
      ;;
    sample)
      bench sample sample 560 --rounds 2 --versus torch --variants compile+channels_last \
        --row size=1024 batch=8,1 vae_dtype=bfloat16
      ;;
    *)
      echo "error: no part $part; use all, kernels, train, settings, versus, sample" >&2
      exit 2
      ;;
  esac
  began=$SECONDS
done
for table in "$OUT"/*/*.md; do
  if [ -e "$table" ]; then cat "$table"; fi
done
if ((${#failed[@]})); then
  echo "error: failed, see the messages above: ${failed[*]}" >&2
  exit 1
fi
