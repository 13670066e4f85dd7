#!/usr/bin/env bash
# Pretrain on a packed corpus with ZeRO-3, with the settings that ZhiXi-13B was trained with.
#   bash pretrain/run_train.sh ./converted ./data/merged ./out
#   GPUS=2 bash pretrain/run_train.sh ./converted ./data/merged ./out --max_steps 10
#   HOSTFILE=host.txt NODES=3 bash pretrain/run_train.sh ./converted ./data/merged ./out
# Too little GPU memory: add --deepspeed pretrain/configs/zero3_offload.json (the later flag counts).
set -euo pipefail
[ $# -ge 3 ] || { echo "usage: bash $0 BASE_MODEL CORPUS_PREFIX OUTPUT_DIR [flags of train.py]" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
[ -n "${VIRTUAL_ENV-}${CONDA_PREFIX-}" ] || PATH=$here/../.venv/bin:$PATH # as if it were activated
deepspeed --num_gpus "${GPUS:-8}" ${HOSTFILE:+--num_nodes "${NODES:-1}" --hostfile "$HOSTFILE"} "$here/train.py" \
    --deepspeed "$here/configs/zero3.json" \
    --model_name_or_path "$1" --data_path "$2" --output_dir "$3" \
    --fp16 True --gradient_checkpointing True \
    --per_device_train_batch_size 20 --gradient_accumulation_steps 3 --num_train_epochs 1 \
    --learning_rate 1.5e-5 --adam_beta1 0.9 --adam_beta2 0.95 --weight_decay 0.1 \
    --lr_scheduler_type cosine --warmup_steps 300 --logging_steps 1 --save_steps 100 --save_total_limit 3 "${@:4}"
