#!/usr/bin/env bash
# GPU hosts of a Slurm cluster, one process a GPU, from a checkout of jaxforget with its environment:
#
#   sbatch configs/launch/slurm.sh configs/tofu/npo.yaml run_dir=/shared/runs/npo mesh.fsdp=-1
#
# A job that is put back in the queue goes on from its last checkpoint.
#SBATCH --job-name=jaxforget
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --requeue
set -euo pipefail
export JAXFORGET_DISTRIBUTED=1 # JAX reads the addresses from Slurm
exec srun --kill-on-bad-exit=1 jaxforget unlearn "$@"
