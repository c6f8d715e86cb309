#!/usr/bin/env bash
# Writes what this folder holds; it was stopped by Ctrl-C after 598,496 of 5,000,000 steps.
set -euo pipefail
kullback train m-dqn atari/pong --num-envs 16 --steps 5000000 \
    --checkpoint-every 2000000 --log-every 4000
