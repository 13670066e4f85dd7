#!/usr/bin/env bash
# Tune all parameters on instructions with ZeRO-3.
#   bash finetune/full/run_full.sh ./zhixi ./instructions/train.json ./tuned
#   GPUS=2 bash finetune/full/run_full.sh ./zhixi ./instructions/train.json ./tuned --num_epochs 1 --pack
#   HOSTFILE=host.txt NODES=3 bash finetune/full/run_full.sh ./zhixi ./instructions/train.json ./tuned
# Too little GPU memory: DEEPSPEED=pretrain/configs/zero3_offload.json
set -euo pipefail
[ $# -ge 3 ] || { echo "usage: bash $0 BASE_MODEL INSTRUCTIONS OUTPUT_DIR [flags of finetune.py]" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
[ -n "${VIRTUAL_ENV-}${CONDA_PREFIX-}" ] || PATH=$here/../../.venv/bin:$PATH # as if it were activated
deepspeed --num_gpus "${GPUS:-8}" ${HOSTFILE:+--num_nodes "${NODES:-1}" --hostfile "$HOSTFILE"} "$here/finetune.py" \
    --deepspeed "${DEEPSPEED:-$here/../../pretrain/configs/zero3.json}" \
    --base_model "$1" --data_path "$2" --output_dir "$3" "${@:4}"
