"""Options that the commands share which measure a trained pipeline on a prepared dataset."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

from ..choices import Direction
from ..options import Range, check_options, required


Seed = Annotated[int, Range(at_least=0, below=2**32)]
BatchSize = Annotated[int, Range(at_least=1, at_most=2**16)]
DirectionChoice = Literal["remove", "add", "both"]
BOTH = "both"
MODEL_ALIASES = ("--model",)


@dataclass(frozen=True)
class StudyOptions:
    """A pipeline and a dataset.

    Raises:
        ValueError: for an option outside its range.
    """

    pretrained_model_name_or_path: str = required("Folder of a pipeline.", aliases=MODEL_ALIASES)
    dataset_dir: Path = required("Prepared dataset (`mediffusion prepare`).")

    def __post_init__(self) -> None:
        check_options(self)

    def check_pipeline_folder(self) -> None:
        """Refuse a folder without a pipeline, and the name of a repository: results name files of the folder.

        Raises:
            ValueError: saying what is missing.
        """
        if not (Path(self.pretrained_model_name_or_path) / "model_index.json").is_file():
            raise ValueError(
                "`pretrained_model_name_or_path` must be a folder that holds a pipeline (model_index.json), but got "
                f"{self.pretrained_model_name_or_path!r}."
            )


def directions_of(direction: str) -> tuple[str, ...]:
    """The directions that `--direction` names."""
    return get_args(Direction) if direction == BOTH else (direction,)
