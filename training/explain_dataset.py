#!/usr/bin/env python
"""Explain every image of a dataset of parquet files, in a folder or on the Hub, with any number of processes.

    accelerate launch training/explain_dataset.py --pretrained_model_name_or_path runs/joint \
        --dataset runs/phantom --split test --output_dir runs/explained --away Cardiomegaly

Run the same command again to go on where it ended. Several launches may share the work: see `--num_shards`.
"""

from __future__ import annotations

import os
import sys

from mediffusion_diffusers import MediffusionCounterfactualPipeline
from mediffusion_diffusers.explanation.arguments import explanation_parser, job_from_arguments
from mediffusion_diffusers.explanation.dataset_runner import explain_dataset


def main() -> None:
    """Parse the command line, load the pipeline, explain, and say what was done."""
    args = explanation_parser().parse_args()
    try:
        job = job_from_arguments(args, os.environ)
        pipe = MediffusionCounterfactualPipeline.from_pretrained(
            args.pretrained_model_name_or_path, revision=args.revision
        )
        summary = explain_dataset(pipe, job)
    except (OSError, ValueError) as error:
        sys.exit(f"explain_dataset.py: {error}")
    if summary is None:
        return
    for problem in summary.problems:
        print(f"Not explained: {problem}")
    print(f"{summary.sentence()} Output: {args.output_dir}")
    sys.exit(1 if summary.problems else 0)


if __name__ == "__main__":
    main()
