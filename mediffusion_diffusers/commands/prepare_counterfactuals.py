"""Counterfactuals of training images, with labels that a teacher gives them, as a prepared dataset to train on."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from ..counterfactual_options import given_options
from ..device_options import DeviceOptions
from ..options import Range, check_options, option, required
from .study_options import BOTH, BatchSize, DirectionChoice, Seed, StudyOptions, directions_of


if TYPE_CHECKING:
    from ..audit.teachers import Teacher
    from ..evaluation.counterfactual_study import CounterfactualStudyRunner


@dataclass(frozen=True)
class CounterfactualsOptions(StudyOptions):
    """Whose counterfactuals, and who says what they show.

    Raises:
        ValueError: for an option outside its range, or a teacher without what it needs.
    """

    output_dir: Path = required("Prepared dataset to write: the images as they are, and counterfactuals to train on.")
    overwrite: bool = option(False, "Replace the prepared dataset in `output_dir`.")
    teacher: Literal["truth", "oracle", "region", "table", "nobody"] = option(
        "nobody",
        "Who says whether a counterfactual has the finding: the known truth (phantoms), an outside classifier "
        "(`oracle_path`), the rule that changes within `region` mean nothing, or a table that people filled in "
        "(`answers`). With nobody, pictures and a table to fill in are written, and no lesson.",
    )
    oracle_path: str | None = option(None, "For the teacher oracle (`mediffusion train oracle`).")
    region: list[float] = option([], "For the teacher region: x, y, width, height in relative units.")
    answers: Path | None = option(None, "For the teacher table: CSV file with image_id and present (1, 0 or empty).")
    labels: list[str] = option([], "Findings to change; all by default.")
    direction: DirectionChoice = option(BOTH, "Whether findings are removed, added, or both.")
    num_images_per_label: Annotated[int, Range(at_least=1)] = option(
        100, "Counterfactuals of each finding and direction at most."
    )
    batch_size: BatchSize = option(32, "Images at a time.")
    seed: Seed = option(0, "Seed of the noises.")

    def __post_init__(self) -> None:
        check_options(self)
        needs = {"oracle": "oracle_path", "region": "region", "table": "answers"}.get(self.teacher)
        if needs is not None and not getattr(self, needs):
            raise ValueError(f"`teacher` {self.teacher!r} needs `{needs}`.")
        if self.region and len(self.region) != 4:
            raise ValueError(f"`region` must be x, y, width and height, but got {len(self.region)} numbers.")

    def ask(self, runner: CounterfactualStudyRunner) -> Teacher | None:
        """The teacher."""
        from ..audit.teachers import OracleTeacher, RegionTeacher, TableTeacher, TruthTeacher

        if self.teacher == "truth":
            return TruthTeacher(runner)
        if self.teacher == "oracle":
            return OracleTeacher()
        if self.teacher == "region":
            return RegionTeacher([dict(zip(("x", "y", "width", "height"), self.region, strict=True))])
        if self.teacher == "table":
            assert self.answers is not None
            return TableTeacher(self.answers)
        return None


CounterfactualEdit = given_options()


@dataclass(frozen=True)
class PreparedLessons:
    """What was written.

    Args:
        output_dir: where.
        counts: counterfactuals by the teacher's answer.
    """

    output_dir: Path
    counts: dict[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Tell it a program."""
        return {"output_dir": str(self.output_dir), "counterfactuals": self.counts}

    def say(self) -> None:
        """Tell it a person."""
        from ..audit.lessons import PICTURES_FOLDER, QUESTIONS_FILE

        counts = self.counts
        print(f"{sum(counts.values())} counterfactuals: {counts['present']} have the finding, {counts['absent']} not")
        if counts["unanswered"]:
            print(
                f"{counts['unanswered']} without an answer are left out: see {QUESTIONS_FILE} and {PICTURES_FOLDER}/"
            )
        print(f"Written: {self.output_dir}")


def prepare_counterfactuals(
    options: CounterfactualsOptions, edit: Any, device_options: DeviceOptions
) -> PreparedLessons:
    """Explain training images, ask the teacher, and write the dataset."""
    from ..audit.lessons import make_lessons, write_lessons
    from ..data.writer import check_output_folder
    from ..evaluation.counterfactual_study import CounterfactualStudyRunner

    options.check_pipeline_folder()
    check_output_folder(options.output_dir, options.overwrite)
    device, dtype = device_options.choose()
    runner = CounterfactualStudyRunner(
        options.pretrained_model_name_or_path,
        options.dataset_dir,
        "train",
        options.oracle_path,
        edit.given(),
        options.batch_size,
        options.seed,
        device,
        dtype,
    )
    lessons = make_lessons(
        *(runner, options.ask(runner), options.labels or None),
        *(directions_of(options.direction), options.num_images_per_label),
    )
    write_lessons(lessons, options.dataset_dir, options.output_dir, options.overwrite)
    return PreparedLessons(options.output_dir, lessons.counts())
