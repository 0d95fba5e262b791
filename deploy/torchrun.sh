#!/usr/bin/env bash
# One run on several nodes without a scheduler: start this on every node, with the same MASTER_ADDR.
#   MASTER_ADDR=node0 NODES=2 NODE_RANK=0 DEVICES=8 deploy/torchrun.sh --task imagenet --norm gn+ws
set -euo pipefail
: "${MASTER_ADDR:?the name of the first node}" "${NODES:?how many nodes}" "${NODE_RANK:?this one: 0, 1, ...}"
devices=${DEVICES:-1}
exec torchrun --nnodes "$NODES" --node-rank "$NODE_RANK" --nproc-per-node "$devices" \
    --rdzv-backend static --master-addr "$MASTER_ADDR" --master-port "${MASTER_PORT:-29500}" \
    -m wsbench fit --ckpt_path auto --trainer.num_nodes "$NODES" --trainer.devices "$devices" "$@"
