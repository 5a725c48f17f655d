"""Explain images: a page with sliders to send to a colleague, panels, animations and a table.

    mediffusion explain chest.png --away Cardiomegaly --model org/mediffusion-cxr

Instead of files, `--dataset_dir` takes the first images of a prepared dataset that have the finding (or lack it, with
`--towards`), with their boxes. Names of files and patients do not appear in what is written, unless `--with_names`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ..counterfactual_options import given_options
from ..device_options import DeviceOptions
from ..option_parser import OptionParser
from ..options import Range, check_options, option
from ..output_folder import claimed_folder, writable_folder
from .command import Command, ResultOptions
from .input_images import EXAMPLE, IMAGES_HELP, ModelOptions, read_images
from .results import note, say_result, write_results


if TYPE_CHECKING:
    from ..reports.pictures.explained_image import ExplainedImage


@dataclass(frozen=True)
class Options:
    """Which images, which finding, and what is written.

    Raises:
        ValueError: for an option outside its range, or unless there is one source of images and one label.
    """

    images: list[Path] = option([], IMAGES_HELP, positional=True)
    away: str | None = option(None, "Finding to remove.")
    towards: str | None = option(None, "Finding to add.")
    output_dir: Path = option(Path("explained"), "Folder for the page, panels, animations and tables.")
    with_names: bool = option(False, "Name the files in what is written. They may name a person.")
    dicom_out: Path | None = option(
        None, "Folder for each explanation as DICOM: its panel as a Secondary Capture, its numbers as a report."
    )
    dicom_identity: bool = option(
        False, "Let these belong to the patient and study of the DICOM file that is explained, instead of to nobody."
    )
    dataset_dir: Path | None = option(None, "Prepared dataset (`mediffusion prepare`), instead of files.")
    split: str = option("test", "Of the dataset.")
    num_images: Annotated[int, Range(at_least=1)] = option(3, "Of the dataset, or of the example's images.")

    def __post_init__(self) -> None:
        check_options(self)
        if self.images and self.dataset_dir is not None:
            raise ValueError("Give either `images` (picture files) or `dataset_dir` (a prepared dataset).")
        if (self.away is None) == (self.towards is None):
            raise ValueError("Give either `away` (a finding to remove) or `towards` (a finding to add).")
        if self.dicom_identity and self.dicom_out is None:
            raise ValueError("`dicom_identity` is about the files of `dicom_out`: name a folder for them.")

    @property
    def label(self) -> str:
        """The finding."""
        return str(self.towards if self.away is None else self.away)

    @property
    def action(self) -> str:
        """What happens to it: `"removed"` or `"added"`."""
        return "added" if self.away is None else "removed"


EditOptions = given_options()


@dataclass(frozen=True)
class Inputs:
    """What is explained.

    Args:
        images: what the pipeline takes.
        names: what the images are called, by files or rows; they may name a person.
        files: which they were read from, or `None`.
        boxes: of the finding in each image, if they are known.
        problems: a sentence for each image that cannot be read.
    """

    images: list[Any]
    names: list[str]
    files: list[Path | None]
    boxes: list[Any] | None = None
    problems: list[str] = field(default_factory=list)


def run(
    options: Options, model: ModelOptions, edit: Any, device_options: DeviceOptions, result_options: ResultOptions
) -> int:
    """Explain and say what came of it.

    Returns:
        1 if an image could not be explained, else 0.

    Raises:
        ValueError: for arguments or files that cannot be used.
        OSError: if a file cannot be read or written, or the Hub cannot be reached.
    """
    from ..pipelines import MediffusionCounterfactualPipeline
    from ..pipelines.counterfactual import CounterfactualSettings
    from ..reports.explanation_table import explanation_rows
    from ..reports.image_explanations import explain_images, write_explanations

    if not options.images and options.dataset_dir is None and model.pretrained_model_name_or_path != EXAMPLE:
        raise ValueError(f"Name the `images`, a `dataset_dir`, or `--model {EXAMPLE}` for the example's own.")
    device, dtype = device_options.choose()
    dicom_out = nullcontext() if options.dicom_out is None else writable_folder(options.dicom_out, "dicom_out")
    with claimed_folder(options.output_dir) as folder, dicom_out:
        pipe = model.load(MediffusionCounterfactualPipeline, dtype, device)
        CounterfactualSettings.resolve(edit.given(), pipe.unet.config.guidance_defaults, pipe.scheduler)
        if options.label not in pipe.label_names:
            raise ValueError(
                f"`away` or `towards` must be among {', '.join(pipe.label_names)}, but got {options.label!r}."
            )
        inputs = _inputs(options, pipe)
        for problem in inputs.problems:
            note(f"Not explained: {problem}")
        names = inputs.names if options.with_names else None
        explained, used = explain_images(
            pipe, inputs.images, options.label, options.action, inputs.boxes, names, **edit.given()
        )
        page = write_results(lambda place: write_explanations(explained, place, used), folder)
        if options.dicom_out is not None:
            _write_dicom(options, pipe, explained, used, inputs.files)
    rows = explanation_rows(explained)
    if result_options.json:
        say_result({"page": str(page), "explanations": rows, "settings": used})
    else:
        for row in rows:
            before, after = row["probability_before"], row["probability_after"]
            print(f"{row['name']}: {row['label']} {row['action']}, probability {before:.3f} -> {after:.3f}")
        print(f"Page: {page}")
    return 1 if inputs.problems else 0


def _write_dicom(
    options: Options, pipe: Any, explained: Sequence[ExplainedImage], used: dict[str, Any], files: list[Path | None]
) -> None:
    """Each explanation as a Secondary Capture and a Structured Report."""
    from ..dicom_export import write_explanation_dicom
    from ..evaluation.provenance import loaded_checkpoint_hash

    assert options.dicom_out is not None
    checkpoint = loaded_checkpoint_hash(pipe)
    for number, (one, file) in enumerate(zip(explained, files, strict=True), start=1):
        scale = {} if one.sweep is None else {"guidance_scale": one.sweep.scales[-1]}
        write_explanation_dicom(
            one,
            options.dicom_out,
            checkpoint,
            {**used, **scale},
            stem=f"explanation-{number}",
            source=file,
            carry_over_identity=options.dicom_identity,
        )


def _inputs(options: Options, pipe: Any) -> Inputs:
    """The images that the options name."""
    if options.dataset_dir is not None:
        return _of_dataset(options, options.dataset_dir, pipe)
    if options.images:
        images, files, problems = read_images(options.images, pipe.image_processor.config.channels)
        return Inputs(images, [file.name for file in files], list(files), problems=problems)
    return _of_example(options)


def _of_dataset(options: Options, dataset_dir: Path, pipe: Any) -> Inputs:
    """The first images of a dataset that have the finding, or lack it where it is added."""
    import numpy as np

    from ..evaluation.held_out import HeldOutSplit

    split = HeldOutSplit(dataset_dir, options.split, pipe.label_names)
    column = pipe.label_names.index(options.label)
    rows = np.flatnonzero(split.labels[:, column] == (1 if options.away else 0))[: options.num_images]
    if not len(rows):
        verb = "has" if options.away else "lacks"
        raise ValueError(f"No image of `split` {options.split!r} {verb} {options.label!r}.")
    kept, images = split.read(rows, pipe)
    if not len(images):
        raise ValueError("None of the images can be read.")
    names = [str(split.dataset[row]["image_id"]) for row in kept.tolist()]
    boxes = [[box for box in split.dataset[row]["boxes"] if int(box["label"]) == column] for row in kept.tolist()]
    return Inputs(list(images), names, [None] * len(names), boxes if options.away else None, split.notes())


def _of_example(options: Options) -> Inputs:
    """The example's images that have the finding, or lack it where it is added."""
    from .. import examples

    chosen = [one for one in examples.images() if (options.label in one.labels) == (options.away is not None)]
    chosen = chosen[: options.num_images]
    if not chosen:
        verb = "has" if options.away else "lacks"
        raise ValueError(f"No image of the example {verb} {options.label!r}.")
    boxes = [[one.boxes[options.label]] if options.label in one.boxes else [] for one in chosen]
    return Inputs([one.image for one in chosen], [one.name for one in chosen], [None] * len(chosen), boxes)


COMMAND = Command(
    OptionParser(
        Options,
        ModelOptions,
        EditOptions,
        DeviceOptions,
        ResultOptions,
        description="\n\n".join((__doc__ or "").split("\n\n")[::2]),
    ),
    run,
)
main = COMMAND.main
