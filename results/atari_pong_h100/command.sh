#!/usr/bin/env bash
# Writes what this folder holds; it was stopped by Ctrl-C after 2,570,496 of 12,500,000 steps.
set -euo pipefail
kullback train m-dqn atari/pong --num-envs 64 --steps 12500000 \
    --checkpoint-every 10000000 --log-every 20000
