#!/usr/bin/env bash
# Trains the two entailment models whose reports stand here.
set -euo pipefail
kullback entailment --out runs/entailment-encoder
kullback entailment --kind embeddings --out runs/entailment-embeddings
