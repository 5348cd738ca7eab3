#!/usr/bin/env bash
# TPU slices of a Kubernetes cluster through xpk, from a checkout of jaxforget:
#
#   CLUSTER=my-cluster IMAGE=my-image configs/launch/xpk.sh configs/tofu/npo.yaml mesh.fsdp=-1
#
# IMAGE has jaxforget with its `tpu` extra; RUNS is a folder that every host of the slice mounts.
# Kubernetes starts the pods of a pre-empted slice again, and the run goes on from its checkpoint.
set -euo pipefail
: "${CLUSTER:?name of the xpk cluster}" "${IMAGE:?container image with jaxforget[tpu]}"
NAME="${NAME:-jaxforget}" TPU="${TPU:-v5litepod-16}" SLICES="${SLICES:-1}" RUNS="${RUNS:-/runs}"
command=(jaxforget unlearn "$@" "run_dir=$RUNS/$NAME")
exec xpk workload create \
  --cluster "$CLUSTER" --workload "$NAME" --tpu-type "$TPU" --num-slices "$SLICES" \
  --docker-image "$IMAGE" --max-restarts 10 \
  --command "export JAXFORGET_DISTRIBUTED=1; ${command[*]@Q}"
