#!/usr/bin/env python
"""Explain single images: a page with sliders to send to a colleague, panels and animations.

    python training/explain_images.py --pretrained_model_name_or_path org/mediffusion-cxr \
        --images a.png b.png --away Cardiomegaly --output_dir explained

Instead of files, `--dataset_dir` takes the first images of a prepared dataset that have the finding (or lack it, with
`--towards`), with their boxes. Names of files and patients do not appear in what is written.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

from mediffusion_diffusers import MediffusionCounterfactualPipeline
from mediffusion_diffusers.data.pictures import open_picture
from mediffusion_diffusers.data.schema import label_matrix, load_info, load_prepared
from mediffusion_diffusers.pipelines.counterfactual_inputs import MASK_WORDS
from mediffusion_diffusers.reports.image_explanations import explain_images, write_explanations


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pretrained_model_name_or_path", required=True, help="Folder or Hub repository.")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--images", type=Path, nargs="+", help="Picture files.")
    source.add_argument("--dataset_dir", type=Path, help="Prepared dataset (prepare_dataset.py).")
    parser.add_argument("--split", default="test", help="Of the dataset.")
    parser.add_argument("--num_images", type=int, default=3, help="Of the dataset.")
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--away", help="Finding to remove.")
    target.add_argument("--towards", help="Finding to add.")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--strength", type=float, default=None)
    parser.add_argument("--guidance_scale", type=float, default=None)
    parser.add_argument("--num_inference_steps", type=int, default=None)
    parser.add_argument("--target_probability", type=float, default=None, help="Search the smallest scale.")
    parser.add_argument("--mask", choices=MASK_WORDS, default=None, help="auto: only where the model changes most.")
    return parser.parse_args()


def images_of(args: argparse.Namespace) -> tuple[list[Any], list[Any] | None]:
    """Pictures, and the boxes of the finding where they are known."""
    if args.images:
        return [open_picture(path) for path in args.images], None
    info, dataset = load_info(args.dataset_dir), load_prepared(args.dataset_dir, args.split)
    label = args.away or args.towards
    if label not in info.label_names:
        raise ValueError(f"`--away` or `--towards` must be among {', '.join(info.label_names)}, but got {label!r}.")
    column = info.label_names.index(label)
    rows = np.flatnonzero(label_matrix(dataset, info)[:, column] == (1 if args.away else 0))[: args.num_images]
    if not len(rows):
        raise ValueError(f"No image of split {args.split!r} {'has' if args.away else 'lacks'} {label}.")
    chosen = dataset[rows.tolist()]
    boxes = [[box for box in boxes if int(box["label"]) == column] for boxes in chosen["boxes"]]
    return chosen["image"], boxes if args.away else None


def main() -> None:
    """Explain and say where the page is."""
    args = parse_arguments()
    names = ("strength", "guidance_scale", "num_inference_steps", "target_probability", "mask")
    settings = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    try:
        pipe = MediffusionCounterfactualPipeline.from_pretrained(args.pretrained_model_name_or_path)
        pipe.set_progress_bar_config(disable=True)
        images, boxes = images_of(args)
        action = "removed" if args.away else "added"
        explained, used = explain_images(pipe, images, args.away or args.towards, action, boxes, **settings)
    except (OSError, ValueError) as error:
        sys.exit(f"explain_images.py: {error}")
    print(f"Page: {write_explanations(explained, args.output_dir, used)}")


if __name__ == "__main__":
    main()
