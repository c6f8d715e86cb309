#!/usr/bin/env bash
# Writes what this folder holds; it was stopped by Ctrl-C after 202,616 of 50,000,000 steps.
set -euo pipefail
kullback train m-dqn atari/pong
