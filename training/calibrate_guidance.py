#!/usr/bin/env python
"""Choose a checkpoint's strength, region and guidance scales on the validation split, and store them in its config.

    python training/calibrate_guidance.py --pretrained_model_name_or_path runs/joint --dataset_dir runs/phantom

Of the settings that flip the model's own decision in at least `--min_flip_rate` of the images, the one that changes
them least is taken; none that changes them by more than `--max_l1`. Adding and removing get a scale each. The whole
table goes to `guidance_calibration.json` in the checkpoint's folder, and the choice into its model card.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mediffusion_diffusers.atomic_files import write_json
from mediffusion_diffusers.evaluation.counterfactual_study import DIRECTIONS, CounterfactualStudyRunner
from mediffusion_diffusers.evaluation.guidance_calibration import (
    MAX_L1,
    MIN_FLIP_RATE,
    GuidanceCalibration,
    write_guidance_defaults,
)
from mediffusion_diffusers.pipelines.counterfactual_inputs import MASK_WORDS
from mediffusion_diffusers.publishing.model_card import refresh_model_card


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pretrained_model_name_or_path", required=True, help="Folder of a pipeline.")
    parser.add_argument("--dataset_dir", required=True, help="Prepared dataset (prepare_dataset.py).")
    parser.add_argument("--split", default="validation", help="Split to choose on; not test.")
    parser.add_argument("--direction", choices=(*DIRECTIONS, "both"), default="both")
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.2, 0.3, 0.4])
    parser.add_argument("--guidance_scales", type=float, nargs="+", default=[3, 10, 30, 100, 300])
    parser.add_argument(
        "--masks",
        choices=MASK_WORDS,
        nargs="+",
        default=list(MASK_WORDS),
        help="Where edits may happen: everywhere, or where a first pass changes most (auto).",
    )
    parser.add_argument(
        "--num_refinements", type=int, default=2, help="How often the gap between two scales is halved at the end."
    )
    parser.add_argument("--num_inference_steps", type=int, default=7)
    parser.add_argument(
        "--fade_guidance",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="Let the push fade within each step: less overshoot at large scales.",
    )
    parser.add_argument("--num_images_per_label", type=int, default=8)
    parser.add_argument("--min_flip_rate", type=float, default=MIN_FLIP_RATE)
    parser.add_argument("--max_l1", type=float, default=MAX_L1, help="Mean absolute change, of the intensity range.")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--dry_run", action="store_true", help="Measure, and leave the checkpoint as it is.")
    return parser.parse_args()


def main() -> None:
    """Measure, choose, store and print."""
    args = parse_arguments()
    fixed = {
        "num_inference_steps": args.num_inference_steps,
        "follow_inversion": True,
        "fade_guidance": args.fade_guidance,
    }
    try:
        runner = CounterfactualStudyRunner(
            args.pretrained_model_name_or_path,
            args.dataset_dir,
            args.split,
            settings=fixed,
            batch_size=args.batch_size,
        )
        directions = DIRECTIONS if args.direction == "both" else (args.direction,)
        calibration = GuidanceCalibration(
            runner, directions, args.num_images_per_label, args.min_flip_rate, args.max_l1
        )
        calibration.measure(args.strengths, args.guidance_scales, args.masks)
        calibration.refine(args.num_refinements)
    except (OSError, ValueError) as error:
        sys.exit(f"calibrate_guidance.py: {error}")
    choice = calibration.choose()
    for trial in sorted(
        calibration.trials, key=lambda one: (one.direction, one.strength, one.mask, one.guidance_scale)
    ):
        mark = "  <- chosen" if trial in choice.trials else ""
        print(
            f"{trial.direction:<6} strength {trial.strength:<5g} {trial.mask:<10} scale {trial.guidance_scale:<6g} "
            f"flips {trial.flip_rate:.3f}  L1 {trial.l1:.4f}{mark}"
        )
    if choice.flip_rate < args.min_flip_rate:
        print(f"No tried setting within an L1 of {args.max_l1} flips {args.min_flip_rate} of the decisions.")
    if choice.largest_l1 > args.max_l1:
        print(f"All tried settings change the images by more than {args.max_l1}: this one changes them least.")
    if len(choice.trials) == 1:
        print(f"Only one direction, {choice.trials[0].direction!r}, was calibrated: its scale will hold for both.")
    if not args.dry_run:
        folder = Path(args.pretrained_model_name_or_path)
        write_guidance_defaults(folder, {**choice.settings(), **fixed})
        refresh_model_card(folder)
        write_json(folder / "guidance_calibration.json", calibration.to_dict())  # last: it says that all is done
        print(f"Stored in {folder / 'unet' / 'config.json'}.")


if __name__ == "__main__":
    main()
