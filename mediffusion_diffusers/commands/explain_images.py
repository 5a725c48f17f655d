"""Explain single images: a page with sliders to send to a colleague, panels and animations.

    python training/explain_images.py --pretrained_model_name_or_path org/mediffusion-cxr \
        --images a.png b.png --away Cardiomegaly --output_dir explained

Instead of files, `--dataset_dir` takes the first images of a prepared dataset that have the finding (or lack it, with
`--towards`), with their boxes. Names of files and patients do not appear in what is written.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from ..data.pictures import open_image
from ..device import DeviceOptions
from ..evaluation.held_out import HeldOutSplit
from ..image_processor import pil_to_float_array
from ..option_parser import OptionParser
from ..options import Range, check_options, option, required
from ..output_folder import claimed_folder
from ..pipelines import MediffusionCounterfactualPipeline
from ..pipelines.counterfactual import CounterfactualSettings, given_options
from ..reports.image_explanations import explain_images, write_explanations
from .results import write_results


@dataclass(frozen=True)
class Options:
    """Options of `explain_images.py`.

    Raises:
        ValueError: for an option outside its range, or unless there is one source of images and one label.
    """

    pretrained_model_name_or_path: str = required("Folder or Hub repository.")
    output_dir: Path = required("Folder for the page, panels and animations.")
    images: list[Path] = option([], "Picture or DICOM files.")
    dataset_dir: Path | None = option(None, "Prepared dataset (prepare_dataset.py), instead of picture files.")
    split: str = option("test", "Of the dataset.")
    num_images: Annotated[int, Range(at_least=1)] = option(3, "Of the dataset.")
    away: str | None = option(None, "Finding to remove.")
    towards: str | None = option(None, "Finding to add.")

    def __post_init__(self) -> None:
        check_options(self)
        if bool(self.images) == (self.dataset_dir is not None):
            raise ValueError("Give either `images` (picture files) or `dataset_dir` (a prepared dataset).")
        if (self.away is None) == (self.towards is None):
            raise ValueError("Give either `away` (a finding to remove) or `towards` (a finding to add).")

    @property
    def label(self) -> str:
        """The finding."""
        return str(self.towards if self.away is None else self.away)

    @property
    def action(self) -> str:
        """What happens to it: `"removed"` or `"added"`."""
        return "added" if self.away is None else "removed"


EditOptions = given_options()


def parser() -> OptionParser:
    """The command line of `explain_images.py`."""
    return OptionParser(Options, EditOptions, DeviceOptions, description=(__doc__ or "").split("\n\n")[0])


def main(argv: Sequence[str] | None = None) -> int:
    """Explain and say where the page is.

    Args:
        argv: the command line without the program; `None` is that of the process.

    Returns:
        1 if an image could not be explained, else 0.

    Raises:
        ValueError: for arguments or files that cannot be used.
        OSError: if a file cannot be read or written, or the Hub cannot be reached.
    """
    options, edit, device_options = parser().parse(argv)
    device, dtype = device_options.choose()
    with claimed_folder(options.output_dir) as folder:
        pipe = MediffusionCounterfactualPipeline.from_pretrained(options.pretrained_model_name_or_path, dtype=dtype)
        pipe.to(device)
        pipe.set_progress_bar_config(disable=True)
        CounterfactualSettings.resolve(edit.given(), pipe.unet.config.guidance_defaults, pipe.scheduler)
        if options.label not in pipe.label_names:
            raise ValueError(
                f"`away` or `towards` must be among {', '.join(pipe.label_names)}, but got {options.label!r}."
            )
        images, boxes, problems = _read_files(options, pipe) if options.images else _read_dataset(options, pipe)
        for problem in problems:
            print(f"Not explained: {problem}", file=sys.stderr)
        if not images:
            raise ValueError("None of the images can be read.")
        explained, used = explain_images(pipe, images, options.label, options.action, boxes, **edit.given())
        page = write_results(lambda place: write_explanations(explained, place, used), folder)
    print(f"Page: {page}")
    return 1 if problems else 0


def _read_files(options: Options, pipe: Any) -> tuple[list[Any], None, list[str]]:
    """Pictures as float arrays in [0, 1], no boxes, and what cannot be read."""
    images, problems = [], []
    for path in options.images:
        try:
            images.append(pil_to_float_array(open_image(path), pipe.image_processor.config.channels))
        except (OSError, ValueError) as error:
            problems.append(str(error) if str(path) in str(error) else f"{path}: {error}")
    return images, None, problems


def _read_dataset(options: Options, pipe: Any) -> tuple[list[Any], list[Any] | None, list[str]]:
    """Images of the finding, its boxes where it is removed, and what cannot be read."""
    assert options.dataset_dir is not None
    split = HeldOutSplit(options.dataset_dir, options.split, pipe.label_names)
    column = pipe.label_names.index(options.label)
    rows = np.flatnonzero(split.labels[:, column] == (1 if options.away else 0))[: options.num_images]
    if not len(rows):
        verb = "has" if options.away else "lacks"
        raise ValueError(f"No image of `split` {options.split!r} {verb} {options.label!r}.")
    kept, images = split.read(rows, pipe)
    boxes = [[box for box in split.dataset[row]["boxes"] if int(box["label"]) == column] for row in kept.tolist()]
    return list(images), boxes if options.away else None, split.notes()
