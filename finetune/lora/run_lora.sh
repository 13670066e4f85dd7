#!/usr/bin/env bash
# Tune LoRA weights on instructions, on one GPU or several.
#   bash finetune/lora/run_lora.sh ./zhixi ./instructions/train.json ./lora
#   GPUS=8 bash finetune/lora/run_lora.sh ./zhixi ./instructions/train.json ./lora --num_epochs 5
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
torchrun --nproc_per_node "${GPUS:-1}" "$here/finetune.py" \
    --base_model "${1:?base model}" --data_path "${2:?instructions}" --output_dir "${3:?output folder}" "${@:4}"
