"""Convert the files of a dataset to the parquet folder that training reads, or draw its labelled share.

Examples:

    mediffusion prepare phantom --output_dir data/phantom --num_train 2000 --image_size 32
    mediffusion prepare chestxray14 --source_dir downloads/CXR8 --output_dir data/cxr --image_size 256
    mediffusion prepare isic2019 --source_dir downloads/isic2019 --output_dir data/isic --image_size 256
    mediffusion prepare medmnist --npz_file pneumoniamnist.npz --output_dir data/pneumonia
    mediffusion prepare dicom --source_dir scans --labels_file labels.csv --output_dir data/scans
    mediffusion prepare imagefolder --source_dir photos --output_dir data/photos
    mediffusion prepare hub --dataset_name org/name --output_dir data/name
    mediffusion prepare counterfactuals --model runs/joint --dataset_dir data/cxr --teacher region --region 0 0 .2 .2 \
        --output_dir data/cxr-mended
    mediffusion prepare split --dataset_dir data/cxr --share 2 --by patient --output labelled-2pct.json
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..atomic_files import read_json
from ..device_options import DeviceOptions
from ..option_parser import OptionParser
from .command import Command, ResultOptions, first_paragraph, run_group
from .prepare_counterfactuals import CounterfactualEdit, CounterfactualsOptions, prepare_counterfactuals
from .prepare_options import (
    ChestOptions,
    ColumnOptions,
    DicomOptions,
    HubSource,
    MedMNISTOptions,
    OutputOptions,
    PhantomOptions,
    ReadingOptions,
    SourceFolder,
    SplitOptions,
    TermOptions,
    TestShare,
    ValidationShare,
    given_values,
)
from .results import note, say_result


if TYPE_CHECKING:
    from ..data import DatasetInfo, LabelledSplit


_SHOWN = 5  # names of missing or skipped files on the console; all of them stand in the report


class Result(Protocol):
    """What a command has made."""

    def say(self) -> None:
        """Tell it a person."""

    def to_dict(self) -> dict[str, Any]:
        """Tell it a program."""


def prepare_chestxray14(source: SourceFolder, output: OutputOptions, *groups: Any) -> Result:
    """Run `convert_chestxray14`."""
    from ..data import convert_chestxray14

    return _convert(convert_chestxray14, source.source_dir, output, *groups)


def prepare_isic2019(source: SourceFolder, output: OutputOptions, *groups: Any) -> Result:
    """Run `convert_isic2019`."""
    from ..data import convert_isic2019

    return _convert(convert_isic2019, source.source_dir, output, *groups)


def prepare_medmnist(options: MedMNISTOptions, output: OutputOptions) -> Result:
    """Run `convert_medmnist`."""
    from ..data import convert_medmnist

    return _convert(convert_medmnist, options.npz_file, output, options)


def prepare_dicom(source: SourceFolder, dicom: DicomOptions, output: OutputOptions, *groups: Any) -> Result:
    """Run `convert_dicom`."""
    from ..data import convert_dicom

    result = _convert(convert_dicom, source.source_dir, output, dicom, *groups)
    if dicom.salt is None:
        note("The pseudonyms use a fresh salt; pass --salt to get the same ones from another conversion.")
    return result


def prepare_imagefolder(source: SourceFolder, columns: ColumnOptions, output: OutputOptions, *groups: Any) -> Result:
    """Run `convert_image_folder`."""
    from ..data import ColumnNames, convert_image_folder

    return _convert(
        convert_image_folder,
        source.source_dir,
        output,
        *groups,
        columns=ColumnNames(**columns.names()),
        **columns.form(),
    )


def prepare_hub(source: HubSource, columns: ColumnOptions, output: OutputOptions, *groups: Any) -> Result:
    """Run `convert_hub_dataset`."""
    from ..data import ColumnNames, convert_hub_dataset

    options = {"columns": ColumnNames(**columns.names()), **columns.form()}
    place = {"config": source.dataset_config_name, "revision": source.revision}
    return _convert(convert_hub_dataset, source.dataset_name, output, *groups, **place, **options)


def prepare_phantom(options: PhantomOptions, output: OutputOptions) -> Result:
    """Run `prepare_phantoms`."""
    from ..data.phantom import prepare_phantoms

    return Conversion(output.output_dir, prepare_phantoms(**given_values(output, options)))


def draw_split(options: SplitOptions) -> Result:
    """Draw a labelled share and write the split file."""
    from ..data import draw_labelled_split, load_info, load_prepared

    info = load_info(options.dataset_dir)
    target = "labels" if info.is_multi_label else "label"
    dataset = load_prepared(options.dataset_dir, "train", columns=["image_id", "patient_id", target])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        split = draw_labelled_split(dataset, info, options.share, options.seed, options.by)
    return Draw(split, len(dataset), split.save(options.output), [str(warning.message) for warning in caught])


def _convert(
    converter: Callable[..., DatasetInfo], source: str | Path, output: OutputOptions, *groups: Any, **more: Any
) -> Result:
    """Run a converter with what its groups of options give."""
    options = {**given_values(output, *groups), **{name: value for name, value in more.items() if value is not None}}
    del options["output_dir"]
    options.pop("npz_file", None)
    return Conversion(output.output_dir, converter(source, output.output_dir, **options))


@dataclass(frozen=True)
class Conversion:
    """A dataset that was prepared.

    Args:
        output_dir: where it is.
        info: what it is.
    """

    output_dir: Path
    info: DatasetInfo

    def to_dict(self) -> dict[str, Any]:
        """What it is, how many images each split and label has, and what became of every file."""
        from ..data import summarize_prepared

        return {
            "output_dir": str(self.output_dir),
            "dataset": asdict(self.info),
            "splits": {name: asdict(summary) for name, summary in summarize_prepared(self.output_dir).items()},
            "conversion": self._report,
        }

    def say(self) -> None:
        """Print what was written, and what is missing."""
        from ..data import ConversionReport, format_summary, summarize_prepared

        info, report = self.info, self._report
        print()
        print(format_summary(info, summarize_prepared(self.output_dir)))
        print()
        for sentence in info.notes:
            print(f"- {sentence}")
        for name in report["missing"][:_SHOWN]:
            print(f"  missing: {_one_line(name)}")
        for entry in report["skipped"][:_SHOWN]:
            print(f"  skipped: {_one_line(entry['file'])}: {entry['reason']}")
        for rule, names in report["ignored"].items():
            print(f"  ignored: {len(names):,} ({rule})")
        if max(len(report["missing"]), len(report["skipped"])) > _SHOWN:
            print(f"  ... all of them: {self.output_dir / self._report_file}")
        print(f"Account: {ConversionReport(**report).account()}.")
        print(f"Licence: {info.licence}. Credit: {info.attribution}.")
        print(f"Written: {self.output_dir}")

    @property
    def _report_file(self) -> str:
        from ..data.writer import REPORT_FILE

        return REPORT_FILE

    @property
    def _report(self) -> dict[str, Any]:
        return read_json(self.output_dir / self._report_file)


@dataclass(frozen=True)
class Draw:
    """A labelled share that was drawn.

    Args:
        split: what was drawn.
        num_train_images: that it was drawn from.
        path: where it was saved.
        warnings: that came up.
    """

    split: LabelledSplit
    num_train_images: int
    path: Path
    warnings: list[str]

    def to_dict(self) -> dict[str, Any]:
        """How many images and patients of each label were drawn, and where it stands who."""
        split = self.split
        return {
            "output": str(self.path),
            "sha256": split.hash,
            **{"share": split.share, "by": split.by, "seed": split.seed},
            "num_train_images": self.num_train_images,
            "num_images": split.num_images,
            "num_patients": split.num_patients,
            "positives": split.positives,
            "warnings": self.warnings,
        }

    def say(self) -> None:
        """Print the same."""
        split, percent = self.split, 100 * self.split.num_images / self.num_train_images
        width = max(len(name) for name in split.positives)
        print(f"{split.num_images:,} of {self.num_train_images:,} training images ({percent:.2f} %), ")
        print(f"{split.num_patients:,} patients; {split.share:g} % by {split.by}, seed {split.seed}")
        for name, count in split.positives.items():
            print(f"  {name.ljust(width)}  {count:,}")
        for warning in self.warnings:
            note(f"Warning: {warning}")
        print(f"Written: {self.path}\nsha256:  {split.hash}")


def _one_line(name: str) -> str:
    """A file name as it is, unless it would break the line."""
    return name if name.isprintable() else repr(name)


def _command(help: str, prepare: Callable[..., Result], *groups: type) -> Command:
    """A command that tells what `prepare`, given its groups of options, has made."""

    def run(*options: Any) -> None:
        *given, result_options = options
        made = prepare(*given)
        if result_options.json:
            say_result(made.to_dict())
        else:
            made.say()

    return Command(OptionParser(*groups, ResultOptions, description=help), run)


_SHARES = (ValidationShare, TestShare)
COMMANDS = {
    "chestxray14": _command(
        "NIH ChestX-ray14: the official files.",
        prepare_chestxray14,
        *(SourceFolder, OutputOptions, ReadingOptions, ChestOptions, ValidationShare),
    ),
    "isic2019": _command(
        "ISIC 2019: the official training files.",
        prepare_isic2019,
        *(SourceFolder, OutputOptions, ReadingOptions, *_SHARES),
    ),
    "medmnist": _command(
        "A MedMNIST .npz file with its official splits.", prepare_medmnist, MedMNISTOptions, OutputOptions
    ),
    "dicom": _command(
        "A folder of grey single-frame DICOM files, without patient tags.",
        prepare_dicom,
        *(SourceFolder, DicomOptions, OutputOptions, TermOptions, ReadingOptions, *_SHARES),
    ),
    "imagefolder": _command(
        "Images with metadata.csv or .jsonl, or one folder per class.",
        prepare_imagefolder,
        *(SourceFolder, ColumnOptions, OutputOptions, TermOptions, ReadingOptions, *_SHARES),
    ),
    "hub": _command(
        "A dataset of the Hub, or any other that `datasets.load_dataset` reads.",
        prepare_hub,
        *(HubSource, ColumnOptions, OutputOptions, TermOptions, ReadingOptions, *_SHARES),
    ),
    "phantom": _command(
        "Procedural chest phantoms with known true counterfactuals.", prepare_phantom, PhantomOptions, OutputOptions
    ),
    "counterfactuals": _command(
        "Counterfactuals of training images with a teacher's labels, to mend a shortcut by training on them.",
        prepare_counterfactuals,
        *(CounterfactualsOptions, CounterfactualEdit, DeviceOptions),
    ),
    "split": _command("Draw the labelled share of a prepared dataset into a split file.", draw_split, SplitOptions),
}
HELP = first_paragraph(__doc__)


def main(argv: Any = None) -> None:
    """Run one of them.

    Args:
        argv: the command line without the program; `None` is that of the process.

    Raises:
        ValueError: for what the user can correct in the arguments or files.
    """
    run_group(COMMANDS, argv, HELP)
