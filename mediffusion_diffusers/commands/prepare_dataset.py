"""Convert the files of a dataset to the parquet folder that training reads, or draw its labelled share.

Examples:

    mediffusion prepare phantom --output_dir data/phantom --num_train 2000 --image_size 32
    mediffusion prepare chestxray14 --source_dir downloads/CXR8 --output_dir data/cxr --image_size 256
    mediffusion prepare isic2019 --source_dir downloads/isic2019 --output_dir data/isic --image_size 256
    mediffusion prepare medmnist --npz_file pneumoniamnist.npz --output_dir data/pneumonia
    mediffusion prepare dicom --source_dir scans --labels_file labels.csv --output_dir data/scans
    mediffusion prepare imagefolder --source_dir photos --output_dir data/photos
    mediffusion prepare hub --dataset_name org/name --output_dir data/name
    mediffusion prepare split --dataset_dir data/cxr --share 2 --by patient --output labelled-2pct.json
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..option_parser import OptionParser
from .command import Command, first_paragraph, run_group
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
from .results import note


if TYPE_CHECKING:
    from ..data import DatasetInfo


_SHOWN = 5  # names of missing or skipped files on the console; all of them stand in the report


def prepare_chestxray14(source: SourceFolder, output: OutputOptions, *groups: Any) -> None:
    """Run `convert_chestxray14`."""
    from ..data import convert_chestxray14

    _convert(convert_chestxray14, source.source_dir, output, *groups)


def prepare_isic2019(source: SourceFolder, output: OutputOptions, *groups: Any) -> None:
    """Run `convert_isic2019`."""
    from ..data import convert_isic2019

    _convert(convert_isic2019, source.source_dir, output, *groups)


def prepare_medmnist(options: MedMNISTOptions, output: OutputOptions) -> None:
    """Run `convert_medmnist`."""
    from ..data import convert_medmnist

    _convert(convert_medmnist, options.npz_file, output, options)


def prepare_dicom(source: SourceFolder, dicom: DicomOptions, output: OutputOptions, *groups: Any) -> None:
    """Run `convert_dicom`."""
    from ..data import convert_dicom

    _convert(convert_dicom, source.source_dir, output, dicom, *groups)
    if dicom.salt is None:
        note("The pseudonyms use a fresh salt; pass --salt to get the same ones from another conversion.")


def prepare_imagefolder(source: SourceFolder, columns: ColumnOptions, output: OutputOptions, *groups: Any) -> None:
    """Run `convert_image_folder`."""
    from ..data import ColumnNames, convert_image_folder

    _convert(
        convert_image_folder,
        source.source_dir,
        output,
        *groups,
        columns=ColumnNames(**columns.names()),
        **columns.form(),
    )


def prepare_hub(source: HubSource, columns: ColumnOptions, output: OutputOptions, *groups: Any) -> None:
    """Run `convert_hub_dataset`."""
    from ..data import ColumnNames, convert_hub_dataset

    options = {"columns": ColumnNames(**columns.names()), **columns.form()}
    place = {"config": source.dataset_config_name, "revision": source.revision}
    _convert(convert_hub_dataset, source.dataset_name, output, *groups, **place, **options)


def prepare_phantom(options: PhantomOptions, output: OutputOptions) -> None:
    """Run `prepare_phantoms`."""
    from ..data.phantom import prepare_phantoms

    _report(output.output_dir, prepare_phantoms(**given_values(output, options)))


def draw_split(options: SplitOptions) -> None:
    """Draw a labelled share and write the split file."""
    from ..data import draw_labelled_split, load_info, load_prepared

    info = load_info(options.dataset_dir)
    target = "labels" if info.is_multi_label else "label"
    dataset = load_prepared(options.dataset_dir, "train", columns=["image_id", "patient_id", target])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        split = draw_labelled_split(dataset, info, options.share, options.seed, options.by)
    path = split.save(options.output)
    width = max(len(name) for name in split.positives)
    print(
        f"{split.num_images:,} of {len(dataset):,} training images ({100 * split.num_images / len(dataset):.2f} %), "
    )
    print(f"{split.num_patients:,} patients; {options.share:g} % by {options.by}, seed {options.seed}")
    for name, count in split.positives.items():
        print(f"  {name.ljust(width)}  {count:,}")
    for warning in caught:
        note(f"Warning: {warning.message}")
    print(f"Written: {path}\nsha256:  {split.hash}")


def _convert(
    converter: Callable[..., DatasetInfo], source: str | Path, output: OutputOptions, *groups: Any, **more: Any
) -> None:
    """Run a converter with what its groups of options give, and print what it did."""
    options = {**given_values(output, *groups), **{name: value for name, value in more.items() if value is not None}}
    del options["output_dir"]
    options.pop("npz_file", None)
    _report(output.output_dir, converter(source, output.output_dir, **options))


def _report(output_dir: Path, info: DatasetInfo) -> None:
    """Print what was written, and what is missing."""
    from ..atomic_files import read_json
    from ..data import ConversionReport, format_summary, summarize_prepared
    from ..data.writer import REPORT_FILE

    report = read_json(output_dir / REPORT_FILE)
    print()
    print(format_summary(info, summarize_prepared(output_dir)))
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
        print(f"  ... all of them: {output_dir / REPORT_FILE}")
    print(f"Account: {ConversionReport(**report).account()}.")
    print(f"Licence: {info.licence}. Credit: {info.attribution}.")
    print(f"Written: {output_dir}")


def _one_line(name: str) -> str:
    """A file name as it is, unless it would break the line."""
    return name if name.isprintable() else repr(name)


def _command(help: str, run: Callable[..., None], *groups: type) -> Command:
    return Command(OptionParser(*groups, description=help), run)


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
