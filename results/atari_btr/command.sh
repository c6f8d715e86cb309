#!/usr/bin/env bash
# For a machine with an accelerator: how fast BTR learns there, and twelve minutes of one game.
#
#     results/atari_btr/command.sh [GAME]    # breakout
#
# Learner steps a second beside the same step in torch, agent steps a second with 64 emulators, both
# kept as JSON; then a run of the published settings, stopped as by Ctrl-C, and its report. The run
# learns from its first 10,000 agent steps on, not from 200,000, which take minutes by themselves.
set -euo pipefail
game=${1:-breakout}
out=runs/atari_btr
python -m kullback.experiments.benchmarks btr btr_atari --out "$out/speed.json"
timeout --signal=INT 720 kullback train btr "atari/$game" --out "$out/$game" \
    --environment-flag max_noops=30 --set min_replay_size=10000 --set frames_on=device \
    --log-every 20000 --checkpoint-every 10000000 || test $? -eq 124
kullback report "$out/$game" --out "$out/report"
