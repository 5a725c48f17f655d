"""Convert the files of a dataset to the parquet folder that training reads, or draw its labelled share.

Examples:

    python training/prepare_dataset.py phantom --output_dir data/phantom --num_train 2000 --image_size 32
    python training/prepare_dataset.py chestxray14 --source_dir downloads/CXR8 --output_dir data/cxr --image_size 256
    python training/prepare_dataset.py isic2019 --source_dir downloads/isic2019 --output_dir data/isic --image_size 256
    python training/prepare_dataset.py medmnist --npz_file pneumoniamnist.npz --output_dir data/pneumonia
    python training/prepare_dataset.py dicom --source_dir scans --labels_file labels.csv --output_dir data/scans
    python training/prepare_dataset.py imagefolder --source_dir photos --output_dir data/photos
    python training/prepare_dataset.py hub --dataset_name org/name --output_dir data/name
    python training/prepare_dataset.py split --dataset_dir data/cxr --share 2 --by patient --output labelled-2pct.json
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

from .. import data
from ..atomic_files import read_json
from ..data.labels import LabelKind
from ..data.phantom import prepare_phantoms
from ..data.splits import DRAWS
from ..data.writer import REPORT_FILE


_LABELS_AS = "What lists of labels hold, where the rule cannot tell: names, indices, or vectors of 0 and 1."
_LABEL_SEPARATOR = "What separates names in a text, such as ','; '' for nothing. By default '|' or ';' if they occur."
_SHOWN = 5  # names of missing or skipped files on the console; all of them stand in the report


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; `namespace.run` is the function of the sub-command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    def add(name: str, run: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run)
        return command

    chest = add("chestxray14", prepare_chestxray14, "NIH ChestX-ray14: the official files.")
    _add_source(chest)
    _add_output(chest)
    _add_reading(chest)
    chest.add_argument("--metadata_only", action="store_true", help="Convert the tables without any image.")
    _add_shares(chest, test=False)

    isic = add("isic2019", prepare_isic2019, "ISIC 2019: the official training files.")
    _add_source(isic)
    _add_output(isic)
    _add_reading(isic)
    _add_shares(isic)

    medmnist = add("medmnist", prepare_medmnist, "A MedMNIST .npz file with its official splits.")
    medmnist.add_argument("--npz_file", required=True, help="For example pneumoniamnist.npz.")
    _add_output(medmnist)
    medmnist.add_argument("--image_size", type=int, help="Reduce images to this side, in pixels.")

    dicom = add("dicom", prepare_dicom, "A folder of grey single-frame DICOM files, without patient tags.")
    _add_source(dicom)
    dicom.add_argument("--labels_file", help="CSV file with labels by file name, SOPInstanceUID or PatientID.")
    dicom.add_argument("--label_columns", nargs="+", help="Columns of --labels_file that are classes.")
    dicom.add_argument("--salt", help="Secret text for the pseudonyms; a fresh one that is kept nowhere by default.")
    dicom.add_argument("--key_file", help="CSV file to write that links files and pseudonyms. Keep it to yourself.")
    _add_output(dicom)
    _add_terms(dicom)
    _add_reading(dicom)
    _add_shares(dicom)

    folder = add("imagefolder", prepare_imagefolder, "Images with metadata.csv or .jsonl, or one folder per class.")
    _add_source(folder)
    hub = add("hub", prepare_hub, "A dataset of the Hub, or any other that `datasets.load_dataset` reads.")
    hub.add_argument("--dataset_name", required=True, help="For example org/name.")
    hub.add_argument("--dataset_config_name", help="Configuration of the dataset, if it has several.")
    hub.add_argument("--revision", help="Branch, tag or commit.")
    for command in (folder, hub):
        command.add_argument("--image_column", default="image", help="Column of the images.")
        command.add_argument("--label_column", help="Column of classes or lists of them; by default label or labels.")
        command.add_argument("--label_columns", nargs="+", help="One column per class, with 1, 0 or empty (unknown).")
        command.add_argument("--labels_as", choices=get_args(LabelKind), default="auto", help=_LABELS_AS)
        command.add_argument("--label_separator", help=_LABEL_SEPARATOR)
        command.add_argument("--patient_id_column", default="patient_id", help="Column of patients, if there is one.")
        command.add_argument("--image_id_column", default="image_id", help="Column of unique names, if there is one.")
        command.add_argument("--channels", type=int, choices=(1, 3), help="By default as the first image.")
        _add_output(command)
        _add_terms(command)
        _add_reading(command)
        _add_shares(command)

    _add_phantom(add("phantom", prepare_phantom, "Procedural chest phantoms with known true counterfactuals."))
    _add_split(add("split", draw_split, "Draw the labelled share of a prepared dataset into a split file."))
    return parser.parse_args(argv)


def _add_phantom(phantom: argparse.ArgumentParser) -> None:
    _add_output(phantom)
    phantom.add_argument("--num_train", type=int, default=2000, help="Training patients.")
    phantom.add_argument("--num_validation", type=int, default=200, help="Validation patients.")
    phantom.add_argument("--num_test", type=int, default=400, help="Test patients.")
    phantom.add_argument("--image_size", type=int, default=32, help="Side of the images, in pixels.")
    phantom.add_argument("--seed", type=int, default=0)


def _add_split(split: argparse.ArgumentParser) -> None:
    split.add_argument("--dataset_dir", required=True, help="A prepared dataset; its training split is drawn from.")
    split.add_argument("--share", type=float, required=True, help="Labelled share in percent, in (0, 100].")
    split.add_argument(
        "--by", choices=DRAWS, default="patient", help="All images of a share of the patients, or a share per class."
    )
    split.add_argument("--seed", type=int, default=0)
    split.add_argument("--output", required=True, help="Split file to write, for example labelled-2pct.json.")


def _add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--source_dir", required=True, help="Folder of the original files.")


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output_dir", required=True, help="Prepared dataset to write.")
    parser.add_argument("--overwrite", action="store_true", help="Replace the prepared dataset in --output_dir.")


def _add_reading(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--image_size", type=int, help="Reduce images to this shorter side in pixels; never enlarge.")
    parser.add_argument("--strict", action="store_true", help="Stop at the first image that cannot be read.")
    parser.add_argument(
        "--num_workers", type=int, help="Threads that read images; one per core (at most 8) by default."
    )


def _add_terms(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", help="Name of the dataset.")
    parser.add_argument("--licence", default="unknown", help="Under which terms the images may be used.")
    parser.add_argument("--attribution", default="unknown", help="Whom to credit.")


def _add_shares(parser: argparse.ArgumentParser, test: bool = True) -> None:
    parser.add_argument(
        "--validation_share", type=float, default=5.0, help="Percent of the training patients to hold out."
    )
    if test:
        parser.add_argument(
            "--test_share",
            type=float,
            default=20.0,
            help="Percent of the patients for a test split that is not given.",
        )
    parser.add_argument("--seed", type=int, default=0, help="Seed of the draws.")


def prepare_chestxray14(args: argparse.Namespace) -> None:
    """Run `convert_chestxray14`."""
    names = ("image_size", "validation_share", "seed", "metadata_only", "strict", "num_workers", "overwrite")
    _report(args, data.convert_chestxray14(args.source_dir, args.output_dir, **_pick(args, names)))


def prepare_isic2019(args: argparse.Namespace) -> None:
    """Run `convert_isic2019`."""
    names = ("image_size", "validation_share", "test_share", "seed", "strict", "num_workers", "overwrite")
    _report(args, data.convert_isic2019(args.source_dir, args.output_dir, **_pick(args, names)))


def prepare_medmnist(args: argparse.Namespace) -> None:
    """Run `convert_medmnist`."""
    _report(args, data.convert_medmnist(args.npz_file, args.output_dir, **_pick(args, ("image_size", "overwrite"))))


def prepare_dicom(args: argparse.Namespace) -> None:
    """Run `convert_dicom`."""
    names = (
        *("labels_file", "label_columns", "name", "image_size", "validation_share", "test_share", "seed", "salt"),
        *("key_file", "licence", "attribution", "strict", "num_workers", "overwrite"),
    )
    _report(args, data.convert_dicom(args.source_dir, args.output_dir, **_pick(args, names)))
    if args.salt is None:
        print("The pseudonyms use a fresh salt; pass --salt to get the same ones from another conversion.")


_DATASET_OPTIONS = (
    *("name", "channels", "image_size", "validation_share", "test_share", "seed", "licence", "attribution", "strict"),
    *("num_workers", "overwrite"),
)


def prepare_imagefolder(args: argparse.Namespace) -> None:
    """Run `convert_image_folder`."""
    options = _pick(args, _DATASET_OPTIONS)
    _report(args, data.convert_image_folder(args.source_dir, args.output_dir, columns=_columns(args), **options))


def prepare_hub(args: argparse.Namespace) -> None:
    """Run `convert_hub_dataset`."""
    options = {"config": args.dataset_config_name, "revision": args.revision, **_pick(args, _DATASET_OPTIONS)}
    _report(args, data.convert_hub_dataset(args.dataset_name, args.output_dir, columns=_columns(args), **options))


def prepare_phantom(args: argparse.Namespace) -> None:
    """Run `prepare_phantoms`."""
    names = ("num_train", "num_validation", "num_test", "image_size", "seed", "overwrite")
    _report(args, prepare_phantoms(args.output_dir, **_pick(args, names)))


def draw_split(args: argparse.Namespace) -> None:
    """Draw a labelled share and write the split file."""
    info = data.load_info(args.dataset_dir)
    target = "labels" if info.is_multi_label else "label"
    dataset = data.load_prepared(args.dataset_dir, "train", columns=["image_id", "patient_id", target])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        split = data.draw_labelled_split(dataset, info, args.share, args.seed, args.by)
    path = split.save(args.output)
    width = max(len(name) for name in split.positives)
    print(
        f"{split.num_images:,} of {len(dataset):,} training images ({100 * split.num_images / len(dataset):.2f} %), "
    )
    print(f"{split.num_patients:,} patients; {args.share:g} % by {args.by}, seed {args.seed}")
    for name, count in split.positives.items():
        print(f"  {name.ljust(width)}  {count:,}")
    for warning in caught:
        print(f"Warning: {warning.message}")
    print(f"Written: {path}\nsha256:  {split.hash}")


def _pick(args: argparse.Namespace, names: Sequence[str]) -> dict:
    """The options that were given; None leaves the function's own default."""
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def _columns(args: argparse.Namespace) -> data.ColumnNames:
    return data.ColumnNames(
        image=args.image_column,
        label=args.label_column,
        label_columns=args.label_columns,
        patient_id=args.patient_id_column,
        image_id=args.image_id_column,
        labels_as=args.labels_as,
        label_separator=args.label_separator,
    )


def _report(args: argparse.Namespace, info: data.DatasetInfo) -> None:
    """Print what was written, and what is missing."""
    report = read_json(Path(args.output_dir) / REPORT_FILE)
    account = data.ConversionReport(**report).account()
    print()
    print(data.format_summary(info, data.summarize_prepared(args.output_dir)))
    print()
    for note in info.notes:
        print(f"- {note}")
    for name in report["missing"][:_SHOWN]:
        print(f"  missing: {_one_line(name)}")
    for entry in report["skipped"][:_SHOWN]:
        print(f"  skipped: {_one_line(entry['file'])}: {entry['reason']}")
    for rule, names in report["ignored"].items():
        print(f"  ignored: {len(names):,} ({rule})")
    if max(len(report["missing"]), len(report["skipped"])) > _SHOWN:
        print(f"  ... all of them: {Path(args.output_dir) / REPORT_FILE}")
    print(f"Account: {account}.")
    print(f"Licence: {info.licence}. Credit: {info.attribution}.")
    print(f"Written: {args.output_dir}")


def _one_line(name: str) -> str:
    """A file name as it is, unless it would break the line."""
    return name if name.isprintable() else repr(name)


def main(argv: Sequence[str] | None = None) -> None:
    """Run one sub-command.

    Raises:
        ValueError: for what the user can correct in the arguments or files.
    """
    args = parse_args(argv)
    args.run(args)
