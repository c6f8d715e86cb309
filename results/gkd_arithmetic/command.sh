#!/usr/bin/env bash
# Writes what this folder holds: about three minutes on two idle cores.
set -euo pipefail
settings=(--set learning_rate=3e-3 --set batch_size=64
    --set max_prompt_length=16 --set max_new_tokens=8)
kullback train sft tokens/arithmetic --model tiny --steps 5000 "${settings[@]}" --out runs/teacher
kullback train gkd tokens/arithmetic --model tiny --model-flag num_layers=2 \
    --teacher runs/teacher --steps 2000 "${settings[@]}" --out runs/student
for run in teacher student; do
    kullback evaluate runs/$run --episodes 200
done
