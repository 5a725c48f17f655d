#!/usr/bin/env python
"""Explain held-out images and measure the explanations: `counterfactuals.json`, panels and `report.html`.

    python training/evaluate_counterfactuals.py --pretrained_model_name_or_path runs/joint \
        --dataset_dir runs/phantom --oracle_path runs/oracle --output_dir runs/counterfactuals
"""

from __future__ import annotations

import argparse
import sys

from mediffusion_diffusers.evaluation.counterfactual_study import DIRECTIONS, CounterfactualStudyRunner
from mediffusion_diffusers.pipelines.counterfactual_inputs import MASK_WORDS
from mediffusion_diffusers.publishing.record import record_results
from mediffusion_diffusers.reports.pages.counterfactual_study import write_study


PIPELINE_ARGUMENTS = (
    *("strength", "guidance_scale", "num_inference_steps", "start", "guidance_mode", "follow_inversion"),
    *("target_probability", "mask", "hold"),
)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pretrained_model_name_or_path", required=True, help="Folder of a pipeline.")
    parser.add_argument("--dataset_dir", required=True, help="Prepared dataset (prepare_dataset.py).")
    parser.add_argument("--split", default="test", help="Split to take images from.")
    parser.add_argument("--oracle_path", default=None, help="Outside classifier (train_oracle.py).")
    parser.add_argument("--output_dir", required=True, help="Folder for the figures.")
    parser.add_argument("--direction", choices=(*DIRECTIONS, "both"), default="both")
    parser.add_argument("--num_images_per_label", type=int, default=16)
    parser.add_argument("--only_with_boxes", action="store_true", help="Remove findings only where they have a box.")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    group = parser.add_argument_group("pipeline", "By default the checkpoint's own settings.")
    group.add_argument("--strength", type=float, default=None)
    group.add_argument("--guidance_scale", type=float, default=None)
    group.add_argument("--num_inference_steps", type=int, default=None)
    group.add_argument("--start", choices=("inversion", "noise"), default=None)
    group.add_argument("--guidance_mode", choices=("zt", "x0_detached", "x0"), default=None)
    group.add_argument("--follow_inversion", action=argparse.BooleanOptionalAction, default=None)
    group.add_argument("--target_probability", type=float, default=None, help="Search the scale for each image.")
    group.add_argument("--mask", choices=MASK_WORDS, default=None, help="auto: only where the model changes most.")
    group.add_argument("--hold", type=float, default=None, help="Weight that holds the other labels.")
    return parser.parse_args()


def main() -> None:
    """Run the study and print its main figures."""
    args = parse_arguments()
    settings = {name: getattr(args, name) for name in PIPELINE_ARGUMENTS}
    try:
        runner = CounterfactualStudyRunner(
            args.pretrained_model_name_or_path,
            args.dataset_dir,
            args.split,
            args.oracle_path,
            settings,
            args.batch_size,
            args.seed,
        )
        directions = DIRECTIONS if args.direction == "both" else (args.direction,)
        study = runner.run(directions, args.num_images_per_label, args.only_with_boxes)
    except (OSError, ValueError) as error:
        sys.exit(f"evaluate_counterfactuals.py: {error}")
    report = write_study(study, args.output_dir)
    print(record_results(args.pretrained_model_name_or_path, "counterfactuals", study.to_dict()))
    for direction, studied in study.directions.items():
        results = studied.results
        print(f"{direction}: {results['num_images']} images, own flips {results['own']['flip_rate']:.2f}", end="")
        if "oracle" in results:
            oracle = results["oracle"]
            print(f", oracle Diff {oracle['diff']:+.3f}, Other diff {oracle['other_diff']:.3f}", end="")
        if "localisation" in results:
            print(f", inside/outside {results['localisation']['vs_original']['ratio']:.2f}", end="")
        print()
    for note in study.notes:
        print(f"Note: {note}")
    print(f"Report: {report}")


if __name__ == "__main__":
    main()
