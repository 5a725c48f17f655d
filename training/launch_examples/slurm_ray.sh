#!/bin/bash
#SBATCH --job-name=explain-ray
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-task=4
#SBATCH --cpus-per-task=16
#SBATCH --time=04:00:00
#SBATCH --requeue
# Explain a dataset by a Ray cluster inside one SLURM job: a raylet on every node, the driver on the first. Chunks go to
# whoever is free; a node that is lost costs the chunks in work there.
#
#     sbatch training/launch_examples/slurm_ray.sh --model org/mediffusion-cxr --dataset data/cxr --split test \
#         --away Cardiomegaly --output_dir explained
#
# Whoever may talk to a Ray cluster can run programs as you. Ray asks for a token, which `ray get-auth-token --generate`
# writes once into your home folder for all nodes that share it.
#
# What was run: the driver on two raylets on loopback, of which one was killed (tests/explanation/ray_losses.py).
# What was not: this file, SLURM, GPUs, real machines.
set -euo pipefail
port=6379
head_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export RAY_USAGE_STATS_ENABLED=0 RAY_ADDRESS="$head_node:$port"

srun --nodes=1 --ntasks=1 --nodelist="$head_node" \
  ray start --head --port="$port" --include-dashboard=false --disable-usage-stats --block &
sleep 20
if [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; then
  srun --nodes=$((SLURM_JOB_NUM_NODES - 1)) --ntasks=$((SLURM_JOB_NUM_NODES - 1)) --exclude="$head_node" \
    ray start --address="$RAY_ADDRESS" --block &
  sleep 20
fi
srun --overlap --nodes=1 --ntasks=1 --nodelist="$head_node" \
  python -m mediffusion_diffusers explain-dataset --engine ray --json "$@"
