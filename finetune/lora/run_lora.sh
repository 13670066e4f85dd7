#!/usr/bin/env bash
# Tune LoRA weights on instructions, on one GPU or several.
#   bash finetune/lora/run_lora.sh ./zhixi ./instructions/train.json ./lora
#   GPUS=8 bash finetune/lora/run_lora.sh ./zhixi ./instructions/train.json ./lora --num_epochs 5 --pack
# On several machines, at the same time on each, NODE_RANK=0 on the one that MASTER names:
#   NODES=2 NODE_RANK=0 MASTER=10.0.0.1 GPUS=8 bash finetune/lora/run_lora.sh ./zhixi ./instructions/train.json ./lora
set -euo pipefail
[ $# -ge 3 ] || { echo "usage: bash $0 BASE_MODEL INSTRUCTIONS OUTPUT_DIR [flags of finetune.py]" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
[ -n "${VIRTUAL_ENV-}${CONDA_PREFIX-}" ] || PATH=$here/../../.venv/bin:$PATH # as if it were activated
torchrun --nproc_per_node "${GPUS:-1}" \
    ${MASTER:+--nnodes "${NODES:?machines}" --node_rank "${NODE_RANK:?of this machine}" --master_addr "$MASTER"} \
    "$here/finetune.py" --base_model "$1" --data_path "$2" --output_dir "$3" "${@:4}"
