#!/usr/bin/env bash
# Training on several machines with torchrun: run this on each of them, the first one included.
#
#     NODES=2 NODE=0 FIRST=10.0.0.1 bash examples/cluster/two_nodes.sh out/run    # on the first
#     NODES=2 NODE=1 FIRST=10.0.0.1 bash examples/cluster/two_nodes.sh out/run    # on the second
#
# `output` and the data must lie on storage that all machines share. A copy of the model is kept on each
# machine (`parallel.replicate`), so that weights are gathered within a machine and only gradients cross the
# network. When a process dies torchrun starts all of them again, up to three times, and the run goes on
# from its newest whole checkpoint.
set -euo pipefail
output=${1:?usage: two_nodes.sh OUTPUT [CONFIG] [KEY=VALUE]...}
config=${2:-cm3leon_760m}

exec torchrun \
  --nnodes "${NODES:-2}" --node-rank "${NODE:?0 on the first machine, then 1, 2, …}" \
  --nproc-per-node "${GPUS:-8}" --max-restarts 3 \
  --rdzv-backend c10d --rdzv-id "$(basename "$output")" \
  --rdzv-endpoint "${FIRST:?address of the first machine}:${PORT:-29500}" \
  -m mmfast.train "$config" output="$output" parallel.replicate="${NODES:-2}" "${@:3}"
