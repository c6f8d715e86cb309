#!/usr/bin/env bash
# Writes what this folder holds; about five minutes each on two idle cores.
set -euo pipefail
for agent in m-dqn dqn; do
    kullback train $agent minatar/breakout --num-seeds 3 --steps 500000 --out runs/breakout-$agent
done
