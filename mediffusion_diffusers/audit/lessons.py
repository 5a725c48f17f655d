"""Counterfactuals as training data: a classifier sees its own shortcut with the label that it should have given.

In the spirit of counterfactual knowledge distillation (Bender et al., "Towards Fixing Clever-Hans Predictors with
Counterfactual Knowledge Distillation", 2023): where removing "the finding" only removed a marker, the teacher says
that the finding is still there.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from ..atomic_files import write_bytes, write_text
from ..data.metadata import read_metadata
from ..data.pictures import encode_png
from ..data.schema import DatasetInfo, label_matrix, load_prepared, make_row
from ..data.splits import LabelledSplit
from ..data.summary import count_positives
from ..data.writer import check_output_folder, write_prepared
from ..evaluation.counterfactual_selection import SELECTION_RULE, Selection
from ..evaluation.counterfactual_study import CounterfactualStudyRunner
from ..file_names import file_stems
from ..image_processor import numpy_to_pil
from .audit import select_labels
from .teachers import Teacher


QUESTIONS_FILE, PICTURES_FOLDER = "counterfactuals.csv", "counterfactuals"  # for people to look at and answer
SPLIT_FILE = "counterfactuals-split.json"  # a labelled split: the lessons and the images that they were made of
_WORDS = {"remove": "without", "add": "with"}


@dataclass(frozen=True, eq=False)
class Lessons:
    """Counterfactuals with the teacher's answers.

    Args:
        info: of the dataset they belong to.
        rows: of a prepared dataset, those without an answer among them left out.
        questions: name, finding and answer (NaN for none) of every counterfactual.
        open_pictures: PNG files of those without an answer, by name, for people to look at.
    """

    info: DatasetInfo
    rows: list[dict[str, Any]]
    questions: list[tuple[str, str, float]]
    open_pictures: dict[str, bytes]

    def counts(self) -> dict[str, int]:
        """How many counterfactuals the teacher says still have the finding, have it no more, or says nothing about."""
        answers = np.array([answer for _, _, answer in self.questions])
        unanswered = int(np.isnan(answers).sum())
        return {"present": int((answers == 1).sum()), "absent": int((answers == 0).sum()), "unanswered": unanswered}


def make_lessons(
    runner: CounterfactualStudyRunner,
    teacher: Teacher | None,
    labels: Sequence[str] | None,
    directions: Sequence[str],
    num_images_per_label: int,
) -> Lessons:
    """Explain images and ask the teacher what the counterfactuals show.

    Args:
        runner: model, dataset and settings.
        teacher: who answers; None leaves every question open.
        labels: findings; None for all.
        directions: `"remove"`, `"add"` or both.
        num_images_per_label: counterfactuals of each finding and direction at most.

    Raises:
        ValueError: for single-label datasets, whose other classes a counterfactual leaves unknown, if no image fits,
            or as the teacher.
    """
    if runner.single_label:
        raise ValueError("Counterfactuals can be training images of datasets with several labels per image only.")
    lessons = Lessons(runner.info, [], [], {})
    for direction in directions:
        chosen = select_labels(runner, direction, labels, num_images_per_label)
        if not len(chosen):
            continue
        made = runner.explain(chosen, direction)
        names = [
            f"{runner.dataset['image_id'][row]}-{_WORDS[direction]}-{runner.label_names[target]}"
            for row, target in zip(chosen.rows.tolist(), chosen.targets.tolist(), strict=True)
        ]
        answers = np.full(len(made), np.nan) if teacher is None else teacher.answer(made, chosen, names)
        findings = [runner.label_names[target] for target in chosen.targets.tolist()]
        lessons.questions.extend(zip(names, findings, answers.tolist(), strict=True))
        pictures = [encode_png(one) for one in numpy_to_pil(np.ascontiguousarray(made.images.transpose(0, 2, 3, 1)))]
        lessons.rows.extend(_rows(runner, made.direction, pictures, chosen, names, answers))
        is_open = np.isnan(answers).tolist()
        lessons.open_pictures.update(
            {name: one for name, one, left in zip(names, pictures, is_open, strict=True) if left}
        )
    if not lessons.questions:
        rules = "; or ".join(SELECTION_RULE[direction] for direction in directions)
        raise ValueError(f"No image of split {runner.split!r} fits: {rules}.")
    return lessons


def write_lessons(lessons: Lessons, dataset_dir: str | Path, output_dir: str | Path, overwrite: bool = False) -> None:
    """Write the dataset with the lessons among its training images, and for people to check what they are.

    `counterfactuals.csv` has a line for each counterfactual, and `counterfactuals/` the pictures without an answer;
    `counterfactuals-split.json` names the lessons and the images that they were made of, for `--labelled_split`.

    Args:
        lessons: of `make_lessons`.
        dataset_dir: the dataset they were made of; its other splits stay as they are.
        output_dir: folder to write.
        overwrite: replace a prepared dataset that is already there.

    Raises:
        ValueError: if the folder is taken.
    """
    check_output_folder(output_dir, overwrite)
    info = DatasetInfo.load(dataset_dir)
    counts = lessons.counts()
    info.notes.append(
        f"{len(lessons.rows)} training images are counterfactuals of others, with labels that a teacher gave them: "
        f"{counts['present']} have the finding that was to be changed, {counts['absent']} do not."
    )
    num_rows = {split: num + (len(lessons.rows) if split == "train" else 0) for split, num in info.num_rows.items()}
    parts = {split: _with_lessons(dataset_dir, split, lessons) for split in num_rows}
    write_prepared(output_dir, parts, info, num_rows=num_rows, overwrite=overwrite)
    if lessons.rows:
        _pairs(lessons, output_dir).save(Path(output_dir) / SPLIT_FILE)
    write_text(os.path.join(output_dir, QUESTIONS_FILE), questions_table(lessons.questions))
    if lessons.open_pictures:
        folder = Path(output_dir) / PICTURES_FOLDER
        folder.mkdir(exist_ok=True)
        for stem, picture in zip(file_stems(list(lessons.open_pictures)), lessons.open_pictures.values(), strict=True):
            write_bytes(folder / f"{stem}.png", picture)


def questions_table(questions: Sequence[tuple[str, str, float]]) -> str:
    """Name, finding and answer of counterfactuals as CSV, as `TableTeacher` reads them; no answer is an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image_id", "label", "present"])
    for name, label, answer in questions:
        writer.writerow([name, label, "" if np.isnan(answer) else int(answer)])
    return text.getvalue()


def _pairs(lessons: Lessons, folder: str | Path) -> LabelledSplit:
    """The lessons and their originals as a labelled split, so that a training can show them alone."""
    names = {row["image_id"] for row in lessons.rows}
    names |= {read_metadata(row["metadata"])["counterfactual_of"] for row in lessons.rows}
    train = load_prepared(folder, "train", columns=["image_id", "patient_id", "labels"])
    rows = [row for row, name in enumerate(train["image_id"]) if name in names]
    pairs = train.select(rows)
    return LabelledSplit(
        dataset=lessons.info.name,
        share=100 * len(rows) / len(train),
        by="class",
        seed=0,
        image_ids=tuple(sorted(names)),
        num_patients=len(set(pairs["patient_id"])),
        positives=count_positives(label_matrix(pairs, lessons.info), lessons.info.label_names),
    )


def _with_lessons(dataset_dir: str | Path, split: str, lessons: Lessons) -> Iterator[dict[str, Any]]:
    """The rows of a split as they are, and after the training images the lessons."""
    yield from load_prepared(dataset_dir, split).cast_column("image", datasets.Image(decode=False))
    if split == "train":
        yield from lessons.rows


def _rows(
    runner: CounterfactualStudyRunner,
    direction: str,
    pictures: Sequence[bytes],
    chosen: Selection,
    names: Sequence[str],
    answers: np.ndarray,
) -> Iterator[dict[str, Any]]:
    """Rows of those counterfactuals that have an answer; all other labels are the original's."""
    for place, (row, target) in enumerate(zip(chosen.rows.tolist(), chosen.targets.tolist(), strict=True)):
        if np.isnan(answers[place]):
            continue
        labels = runner.labels[row].tolist()
        labels[target] = answers[place]
        yield make_row(
            runner.info,
            pictures[place],
            image_id=names[place],
            patient_id=runner.patient_ids[row],
            labels=labels,
            boxes=[box for box in runner.boxes[row] if answers[place] == 1 or int(box["label"]) != target],
            metadata={"counterfactual_of": runner.dataset["image_id"][row], "direction": direction},
        )
