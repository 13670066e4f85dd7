#!/usr/bin/env bash
# Serve a model over HTTP with vLLM, with the settings published for ZhiXi-13B on two GPUs.
#   bash inference/vllm.sh data/zhixi-13B
#   CUDA_VISIBLE_DEVICES=0 bash inference/vllm.sh ./zhixi-sft --tensor-parallel-size 1 --port 9000
set -euo pipefail
[ $# -ge 1 ] || { echo "usage: bash $0 MODEL [flags of launch_vllm.py]" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
[ -n "${VIRTUAL_ENV-}${CONDA_PREFIX-}" ] || PATH=$here/../.venv/bin:$PATH # as if it were activated
export CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-1,2}
max_num_batched_tokens=8000
exec python "$here/launch_vllm.py" \
    --port 8090 \
    --model "$1" \
    --max-num-batched-tokens $max_num_batched_tokens \
    --dtype half \
    --tensor-parallel-size 2 "${@:2}"
