#!/usr/bin/env python
"""Write the cards of the small runs on real images, `model_cards/mediffusion-*/README.md`, from `benchmarks/results`.

    python benchmarks/cards.py

Every figure is read from a results file; a test compares cards and files. What a card must state and nobody measured
is listed as not measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from results_text import RESULTS, ROOT, at, cell, number, table

from mediffusion_diffusers.atomic_files import read_json, write_text
from mediffusion_diffusers.notices import CARD_NOTICE, THRESHOLD_NOTICE


CARDS = ROOT / "model_cards"
DIRECTIONS = {"remove": "removing", "add": "adding"}
NOT_MEASURED = (
    "thresholds at stated sensitivity or specificity, calibration line",
    "subgroups (sex, age, view)",
    "external data set",
    "other seeds and draws",
    "generation (KID, FID beside the real-against-real floor) and memorisation of training images",
)


@dataclass(frozen=True)
class Card:
    """A small run.

    Args:
        results: name of its results file.
        images: what kind they are.
        recipe: the paper's presets that it stands for, in words.
        out_of_scope: images that it says nothing about.
        unit: whose images are kept together.
    """

    results: str
    images: str
    recipe: str
    out_of_scope: str
    unit: str = "patient"


SMALL_RUNS = {
    "mediffusion-cxr": Card(
        "real_data_chestxray14",
        "frontal chest radiographs",
        "the paper's own recipe: presets `chestxray14-autoencoder` and `chestxray14-2pct` to `chestxray14-100pct`",
        "other views, modalities or age groups",
    ),
    "mediffusion-isic": Card(
        "real_data_isic2019",
        "dermoscopic images",
        "the paper's own recipe: presets `isic2019-autoencoder` and `isic2019-2pct` to `isic2019-20pct`",
        "clinical photographs; skin types that the data lack",
        "lesion",
    ),
    "mediffusion-pneumonia": Card(
        "real_data_pneumoniamnist",
        "chest radiographs of children, as thumbnails",
        "the paper has no such experiment",
        "radiographs at a readable size, adults, other findings",
        "image",
    ),
}


def card(name: str, folder: Path = RESULTS) -> str:
    """A card's text.

    Args:
        name: of `SMALL_RUNS`.
        folder: of the results files.
    """
    about = SMALL_RUNS[name]
    results = read_json(folder / f"{about.results}.json")
    blocks = [
        *_head(name, about, results),
        *_data(about, results),
        *_classification(about, results["classification"]),
        *_counterfactuals(about, results),
        *_end(results),
    ]
    return "\n".join(blocks)


def _head(name: str, about: Card, results: Mapping[str, Any]) -> Iterator[str]:
    file = f"[{about.results}.json](../../benchmarks/results/{about.results}.json)"
    yield f"# {name}: a small run on {about.images}\n"
    yield f"> **{CARD_NOTICE}**\n"
    yield (
        f"No weights are published for this recipe. It shows that the commands work at a size that a laptop walks; "
        f"{about.recipe}.\n"
    )
    yield f"- **Labels**: {', '.join(results['classification']['per_label'])}"
    yield f"- **Images**: {about.images}; the commands say at which size"
    yield "- **Commands**: [real_data.sh](../../benchmarks/real_data.sh), and as they were run in the results"
    yield f"- **All figures** of this card are read from {file}; it is written by `benchmarks/cards.py`\n"
    yield "## Intended use, and what is out of scope\n"
    yield (
        "For researchers who want to repeat the road before they spend GPU days on it. Out of scope: diagnosis, "
        "triage, treatment, screening or any other decision about a person; "
        f"{about.out_of_scope}; evidence about a disease. A "
        "counterfactual shows what changes this model's score: not causal, not anatomy, not disease progression.\n"
    )


def _data(about: Card, results: Mapping[str, Any]) -> Iterator[str]:
    data, split = results["data"], results["labelled_split"]
    yield "## Data\n"
    yield f"- **Source**: {data['source']}"
    yield f"- **Licence**: {data['licence']}"
    yield f"- **Attribution**: {data['attribution']}"
    yield from (f"- {note}" for note in [*([data["subset"]] if "subset" in data else []), *data["notes"]])
    yield ""
    columns = ["images", "patients", "sex", "age in years", "view"]
    rows = [
        [name, *(cell(value) or "not recorded" for value in (num, *map(known.get, columns[1:])))]
        for name, num in data["num_rows"].items()
        for known in [data.get("demographics", {}).get(name, {})]
    ]
    yield table(["split", *columns], rows)
    positives = ", ".join(f"{name} {num}" for name, num in split["positives"].items())
    owners = "" if about.unit == "image" else f" of {number(split['num_patients'])} {about.unit}s"
    yield (
        f"{number(split['num_images'])} training images{owners} keep their labels "
        f"({number(split['share'])} %, seed {split['seed']}): {positives}. SHA-256 of the split: `{split['hash']}`.\n"
    )


def _classification(about: Card, found: Mapping[str, Any]) -> Iterator[str]:
    yield "## Classification\n"
    accuracy = f"; accuracy {number(found['accuracy'])}" if "accuracy" in found else ""
    yield (
        f"Split {found['split']}, used once: {number(found['num_images'])} images; averaged weights of the last step. "
        f"Macro AUROC {number(found['macro_auroc'])} {cell(found['interval_95_over_patients'])}, a 95 % interval over "
        f"{about.unit}s; macro AUPRC {number(found['macro_auprc'])}{accuracy}.\n"
    )
    keys = {
        "num_positives": "positives",
        "auroc": "AUROC",
        "auprc": "AUPRC",
        "prevalence": "prevalence",
        "brier": "Brier",
        "ece": "ECE",
    }
    rows = [[name, *(cell(label[key]) or "–" for key in keys)] for name, label in found["per_label"].items()]
    yield table(["label", *keys.values()], rows)
    left_out = "; ".join(f"{name}: {reason}" for name, reason in found["left_out"].items())
    yield (f"Left out of the means: {left_out}. " if left_out else "") + THRESHOLD_NOTICE + "\n"


def _counterfactuals(about: Card, results: Mapping[str, Any]) -> Iterator[str]:
    studied, oracle = results["counterfactuals"], results["oracle"]
    parts = {name: studied[name] for name in DIRECTIONS if name in studied}
    yield "## Counterfactuals\n"
    chosen = "; ".join(
        f"{DIRECTIONS[each['direction']]}: strength {number(each['strength'])}, region {each['mask']}, scale "
        f"{number(each['guidance_scale'])}, {number(each['flip_rate'])} of {each['num_images']} decisions flip"
        for each in results["guidance_calibration"]["chosen"]
    )
    yield f"Chosen on the validation split ({results['guidance_calibration']['rule']}): {chosen}.\n"
    yield (
        f"The outside classifier (oracle) was {oracle['patients']}; its validation macro AUROC is "
        f"{number(oracle['validation']['clean']['macro_auroc'])}.\n"
    )
    yield table(["", *(DIRECTIONS[name] for name in parts)], _study_rows(list(parts.values())))
    for name, part in parts.items():
        rows = [
            [
                label,
                *(
                    cell(found[key]) or "–"
                    for key in ("num_images", "own_flip_rate", "oracle_diff", "oracle_flip_rate")
                ),
            ]
            for label, found in part["per_label"].items()
        ]
        yield table([DIRECTIONS[name], "edits", "own flips", "oracle Diff", "oracle flips"], rows)
    yield f"**What one sees, and what fell short**: {results['seen_in_the_panels']}\n"
    picture = RESULTS / f"{about.results}.png"
    if picture.is_file():
        title = "Original, counterfactual, difference and null edit; the first test image of each finding"
        yield f"![{title}](../../benchmarks/results/{picture.name})\n"
    first = results["first_round"]
    figures = "; ".join(
        f"{DIRECTIONS[name]}: own flips {number(found['own_flip_rate'])}, oracle Diff {number(found['oracle_diff'])} "
        f"(plain gradient {number(found['oracle_diff_of_plain_gradient'])}), L1 {number(found['l1'])}"
        for name, found in first.items()
        if name in DIRECTIONS
    )
    yield f"{first['note']} That round: {figures}.\n"


def _study_rows(parts: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """What was measured of the counterfactuals of each direction, and of the controls."""

    def row(name: str, path: str) -> list[str]:
        return [name, *(cell(at(part, path)) or "not measured" for part in parts)]

    return [
        row("edits", "num_images"),
        row("own decision flips", "own.flip_rate"),
        row("95 % (Wilson, over images)", "own.flip_rate_wilson_95"),
        row("oracle Diff", "oracle.diff"),
        row("oracle Diff, plain gradient of the same size", "controls.plain_gradient.oracle.diff"),
        row("oracle Diff, noise of the same size", "controls.random_noise.oracle.diff"),
        row("oracle Other diff", "oracle.other_diff"),
        row("oracle flips", "oracle.flip_rate"),
        row("L1 to the original", "change.l1"),
        row("L1 to the null edit", "change.l1_vs_null"),
        row("images with a box", "localisation.vs_original.num_images"),
    ]


def _end(results: Mapping[str, Any]) -> Iterator[str]:
    yield "## Not measured\n"
    yield from (f"- {name}: not measured" for name in NOT_MEASURED)
    yield "\n## Limitations\n"
    seconds = number(sum(results["seconds"].values()))
    yield (
        f"One seed, one draw; {seconds} seconds on {results['machine']}. The edits are not as many images: the same "
        "first images served for several labels, and how many patients they are of was not recorded. What is not "
        "listed as measured is unknown, not good.\n"
    )
    yield f"Checkpoint {results['checkpoint']}, version {results['version']}.\n"
    yield "## Disclaimer\n"
    yield f"{CARD_NOTICE}\n"


def main() -> None:
    """Write all cards."""
    for name in SMALL_RUNS:
        (CARDS / name).mkdir(exist_ok=True)
        write_text(CARDS / name / "README.md", card(name))


if __name__ == "__main__":
    main()
