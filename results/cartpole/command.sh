#!/usr/bin/env bash
# Writes what this folder holds, and scores each seed's best checkpoint; a few minutes a seed.
set -euo pipefail
kullback train m-dqn gym/CartPole-v1 --num-seeds 3 --steps 100000 \
    --eval-every 10000 --eval-episodes 20 --out runs/cartpole
for seed in 0 1 2; do
    kullback evaluate runs/cartpole --seed $seed --best --episodes 100
done
