"""Evaluate a pipeline's classifier on a held-out split: `classification.json`, with intervals and provenance."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mediffusion_diffusers.atomic_files import write_json
from mediffusion_diffusers.evaluation.classification_study import study_classification
from mediffusion_diffusers.publishing.record import record_results


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--pretrained_model_name_or_path", required=True, help="Folder of a pipeline.")
    parser.add_argument("--dataset_dir", required=True, help="Prepared dataset (prepare_dataset.py).")
    parser.add_argument("--split", default="test", help="Split to evaluate; thresholds come from validation.")
    parser.add_argument("--output_dir", type=Path, required=True, help="Folder for classification.json.")
    parser.add_argument("--num_resamples", type=int, default=1000, help="Draws of patients for the interval.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of these draws.")
    return parser.parse_args()


def main() -> None:
    """Evaluate as the command line says."""
    args = parse_arguments()
    try:
        result = study_classification(
            args.pretrained_model_name_or_path, args.dataset_dir, args.split, args.num_resamples, args.seed
        )
    except (OSError, ValueError) as error:
        sys.exit(f"evaluate_classification.py: {error}")
    args.output_dir.mkdir(parents=True, exist_ok=True)
    write_json(args.output_dir / "classification.json", result)
    print(record_results(args.pretrained_model_name_or_path, "classification", result))

    interval = result["macro_auroc_interval"]
    print(f"{result['num_images']} images of {result['provenance']['data']} ({args.split})")
    print(f"macro AUROC {result['macro_auroc']:.3f} (95 % interval {interval['low']:.3f} to {interval['high']:.3f})")
    for name, label in result["per_label"].items():
        auroc = "left out: " + result["left_out"][name] if name in result["left_out"] else f"{label['auroc']:.3f}"
        print(f"  {name:20} {auroc}  ({label['num_positives']} of {label['num_positives'] + label['num_negatives']})")


if __name__ == "__main__":
    main()
