#!/bin/bash
#SBATCH --job-name=explain
#SBATCH --array=0-15
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=4
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@60
#SBATCH --requeue
# Explain a dataset by a SLURM job array, one GPU per task: each task takes every 16th input shard, so the dataset should have
# some times more shards than there are tasks. The same command finishes what a time limit or a preemption has left.
#
#     sbatch training/launch_examples/slurm_array.sh --model org/mediffusion-cxr --dataset data/cxr --split test \
#         --away Cardiomegaly --output_dir explained
#
# The folder must be on a file system that all nodes share; its chunk size is that of the first task (`--chunk_rows` names it).
#
# What was run: two tasks at once on one machine, with the variables that SLURM sets (tests/explanation/test_processes.py).
# What was not: SLURM itself.
set -euo pipefail
export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"
exec srun python -m mediffusion_diffusers explain-dataset --json "$@"
