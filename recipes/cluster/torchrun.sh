#!/usr/bin/env bash
# A run of liteasr on several machines without a scheduler: the same command on each of them.
#
#   HEAD=10.0.0.1 NODES=2 DEVICES=8 bash recipes/cluster/torchrun.sh recipes/large_v3.yaml \
#     run.dir=/shared/runs/large [key=value …]
#
# HEAD is the address of one of the machines, under which the others reach it. The recipe's data,
# model and run.dir must be where all machines see them. The same command again goes on after an
# interrupt.
set -euo pipefail

recipe=${1:?usage: HEAD=… NODES=… DEVICES=… bash torchrun.sh RECIPE run.dir=FOLDER [key=value …]}
shift
nodes=${NODES:-1}
devices=${DEVICES:-1}
exec "${PYTHON:-python}" -m torch.distributed.run \
  --nnodes="$nodes" \
  --nproc-per-node="$devices" \
  --rdzv-backend=c10d \
  --rdzv-endpoint="${HEAD:-localhost}:${PORT:-29400}" \
  --rdzv-id=liteasr \
  -m liteasr.fit --config "$recipe" \
  run.resume=true \
  trainer.num_nodes="$nodes" \
  trainer.devices="$devices" \
  "$@"
