"""Classify images: the probability of every label, the threshold, and the labels from there up.

    mediffusion classify scans/*.png --model org/mediffusion-cxr --output probabilities.csv

Names of files are in the table, which is yours; nothing else of a file is.
"""

from __future__ import annotations

import csv
import io
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..atomic_files import write_text
from ..device_options import DeviceOptions
from ..option_parser import OptionParser
from ..options import check_options, option, required
from ..output_folder import writable_folder
from .command import Command, ResultOptions, first_paragraph
from .input_images import IMAGES_HELP, ModelOptions, read_images
from .results import json_text, note, say_result
from .study_options import BatchSize


@dataclass(frozen=True)
class Options:
    """Which images, and where the table goes.

    Raises:
        ValueError: for an option outside its range, or an output that is neither CSV nor JSON.
    """

    images: list[Path] = required(IMAGES_HELP, positional=True)
    output: Path | None = option(None, "CSV or JSON file to write, by its suffix; by default CSV is printed.")
    batch_size: BatchSize = option(16, "Images at a time.")
    calibrated: bool = option(False, "Correct probabilities by what `calibrate-probabilities` stored.")

    def __post_init__(self) -> None:
        check_options(self)
        if self.output is not None and self.output.suffix.lower() not in (".csv", ".json"):
            raise ValueError(f"`output` must end with .csv or .json, but got {str(self.output)!r}.")


def run(options: Options, model: ModelOptions, device_options: DeviceOptions, result_options: ResultOptions) -> int:
    """Classify and tell.

    Returns:
        1 if an image could not be read, else 0.

    Raises:
        ValueError: for arguments or files that cannot be used.
        OSError: if a file cannot be read or written, or the Hub cannot be reached.
    """
    with nullcontext() if options.output is None else writable_folder(options.output.parent, "output"):
        result, problems = _classify(options, model, device_options)
        for problem in problems:
            note(f"Not classified: {problem}")
        is_json = result_options.json if options.output is None else options.output.suffix.lower() == ".json"
        if options.output is not None:
            write_text(options.output, json_text(result) if is_json else _table(result))
            note(f"Written: {options.output}")
    if result_options.json:
        say_result(result)
    elif options.output is None:
        sys.stdout.write(_table(result))
    return 1 if problems else 0


def _classify(
    options: Options, model: ModelOptions, device_options: DeviceOptions
) -> tuple[dict[str, Any], list[str]]:
    """Thresholds and a row per image, and a sentence for each image that cannot be read."""
    from ..pipelines import MediffusionClassifyPipeline

    device, dtype = device_options.choose()
    pipe = model.load(MediffusionClassifyPipeline, dtype, device)
    images, files, problems = read_images(options.images, pipe.image_processor.config.channels)
    pipe.set_progress_bar_config(disable=len(images) <= options.batch_size)
    output = pipe(images, batch_size=options.batch_size, calibrated=options.calibrated)
    rows = [
        {
            "image": str(file),
            "labels": labels,
            "probabilities": dict(zip(output.label_names, map(float, probabilities), strict=True)),
        }
        for file, labels, probabilities in zip(files, output.labels, output.probabilities, strict=True)
    ]
    thresholds = dict(zip(output.label_names, output.thresholds, strict=True))
    return {"thresholds": thresholds, "images": rows}, problems


def _table(result: dict[str, Any]) -> str:
    """As CSV: a row per image with its labels and probabilities, the first row the thresholds."""
    text = io.StringIO()
    names = list(result["thresholds"])
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "labels", *names])
    writer.writerow(["(threshold)", "", *result["thresholds"].values()])
    for row in result["images"]:
        probabilities = [f"{row['probabilities'][name]:.6g}" for name in names]
        writer.writerow([row["image"], "|".join(row["labels"]), *probabilities])
    return text.getvalue()


COMMAND = Command(
    OptionParser(Options, ModelOptions, DeviceOptions, ResultOptions, description=first_paragraph(__doc__)), run
)
main = COMMAND.main
