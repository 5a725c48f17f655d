"""Options of `mediffusion prepare`, in groups that its sources share; each is named as the converter's argument."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from ..choices import Draw, LabelKind
from ..options import Range, check_options, option, required


_Side = Annotated[int | None, Range(at_least=1, at_most=2**16)]
_Share = Annotated[float, Range(at_least=0, below=100)]
_Seed = Annotated[int, Range(at_least=0, below=2**63)]
_NumPatients = Annotated[int, Range(at_least=0, at_most=10_000_000)]


class _Checked:
    """Checks each option as it is made; a `ValueError` names the first that is outside its range."""

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True)
class SourceFolder(_Checked):
    """Where the original files are."""

    source_dir: Path = required("Folder of the original files.")


@dataclass(frozen=True)
class HubSource(_Checked):
    """Which dataset of the Hub."""

    dataset_name: str = required("For example org/name.")
    dataset_config_name: str | None = option(None, "Configuration of the dataset, if it has several.")
    revision: str | None = option(None, "Branch, tag or commit.")


@dataclass(frozen=True)
class OutputOptions(_Checked):
    """Where the prepared dataset goes."""

    _argument_group_name = "output"

    output_dir: Path = required("Prepared dataset to write.")
    overwrite: bool = option(False, "Replace the prepared dataset in `output_dir`.")


@dataclass(frozen=True)
class ReadingOptions(_Checked):
    """How images are read."""

    _argument_group_name = "reading"

    image_size: _Side = option(None, "Reduce images to this shorter side in pixels; never enlarge.")
    strict: bool = option(False, "Stop at the first image that cannot be read.")
    num_workers: Annotated[int | None, Range(at_least=1)] = option(
        None, "Images read at a time, by processes where there are many images; one per core (at most 8) by default."
    )


@dataclass(frozen=True)
class TermOptions(_Checked):
    """What the dataset is called, and under which terms it may be used."""

    _argument_group_name = "terms"

    name: str | None = option(None, "Name of the dataset.")
    licence: str = option("unknown", "Under which terms the images may be used.")
    attribution: str = option("unknown", "Whom to credit.")


@dataclass(frozen=True)
class ValidationShare(_Checked):
    """The validation split, and the seed of all draws."""

    _argument_group_name = "splits"

    validation_share: _Share = option(5.0, "Percent of the training patients to hold out.")
    seed: _Seed = option(0, "Seed of the draws.")


@dataclass(frozen=True)
class TestShare(_Checked):
    """The test split, where none is given."""

    _argument_group_name = "splits"

    test_share: _Share = option(20.0, "Percent of the patients for a test split that is not given.")


@dataclass(frozen=True)
class ChestOptions(_Checked):
    """Of ChestX-ray14 alone."""

    metadata_only: bool = option(False, "Convert the tables without any image.")


@dataclass(frozen=True)
class MedMNISTOptions(_Checked):
    """Of MedMNIST alone."""

    npz_file: Path = required("For example pneumoniamnist.npz.")
    image_size: _Side = option(None, "Reduce images to this side, in pixels.")


@dataclass(frozen=True)
class DicomOptions(_Checked):
    """Of DICOM folders alone."""

    labels_file: Path | None = option(None, "CSV file with labels by file name, SOPInstanceUID or PatientID.")
    label_columns: list[str] | None = option(None, "Columns of `labels_file` that are classes.")
    salt: str | None = option(None, "Secret text for the pseudonyms; a fresh one that is kept nowhere by default.")
    key_file: Path | None = option(None, "CSV file to write that links files and pseudonyms. Keep it to yourself.")


@dataclass(frozen=True)
class ColumnOptions(_Checked):
    """What the columns of a table hold."""

    _argument_group_name = "columns"

    image_column: str = option("image", "Column of the images.")
    label_column: str | None = option(None, "Column of classes or lists of them; by default label or labels.")
    label_columns: list[str] | None = option(None, "One column per class, with 1, 0 or empty (unknown).")
    labels_as: LabelKind = option(
        "auto", "What lists of labels hold, where the rule cannot tell: names, indices, or vectors of 0 and 1."
    )
    label_separator: str | None = option(
        None, "What separates names in a text, such as ','; '' for nothing. By default '|' or ';' if they occur."
    )
    patient_id_column: str = option("patient_id", "Column of patients, if there is one.")
    image_id_column: str = option("image_id", "Column of unique names, if there is one.")
    channels: Annotated[int | None, Range(at_least=1, at_most=3)] = option(
        None, "1 (grey) or 3 (colour); by default as the first image."
    )

    def names(self) -> dict[str, Any]:
        """The arguments of `ColumnNames`."""
        return {
            "image": self.image_column,
            "label": self.label_column,
            "label_columns": self.label_columns,
            "patient_id": self.patient_id_column,
            "image_id": self.image_id_column,
            "labels_as": self.labels_as,
            "label_separator": self.label_separator,
        }

    def form(self) -> dict[str, Any]:
        """The arguments of the converter."""
        return {"channels": self.channels}


@dataclass(frozen=True)
class PhantomOptions(_Checked):
    """How many phantoms, how large."""

    num_train: _NumPatients = option(2000, "Training patients.")
    num_validation: _NumPatients = option(200, "Validation patients.")
    num_test: _NumPatients = option(400, "Test patients.")
    image_size: Annotated[int, Range(at_least=8, at_most=2048)] = option(32, "Side of the images, in pixels.")
    seed: _Seed = option(0, "The population: two seeds share no patient.")
    shortcut: str | None = option(
        None, "Plant a marker that goes with a finding, for example Effusion:0.9, for `mediffusion audit` to find."
    )


@dataclass(frozen=True)
class SplitOptions(_Checked):
    """Which share keeps its labels."""

    dataset_dir: Path = required("A prepared dataset; its training split is drawn from.")
    share: Annotated[float, Range(above=0, at_most=100)] = required("Labelled share in percent.")
    output: Path = required("Split file to write, for example labelled-2pct.json.")
    by: Draw = option("patient", "All images of a share of the patients, or a share per class.")
    seed: _Seed = option(0, "Seed of the draw.")


def given_values(*groups: Any) -> dict[str, Any]:
    """The options of some groups that are given, by name; `None` leaves the converter's own default."""
    return {
        entry.name: getattr(group, entry.name)
        for group in groups
        for entry in fields(group)
        if getattr(group, entry.name) is not None
    }
