"""A shortcut planted into phantoms, found by an audit, and trained against with counterfactuals: shortcut.json.

    python benchmarks/shortcut.py --output_dir runs/shortcut

The classifier is that of the checkpoint in the package, with a new head, trained on pictures in which a marker gives
one finding away. Minutes on one core. A step whose results are there is not made again.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mediffusion_diffusers import examples
from mediffusion_diffusers.atomic_files import read_json, write_json
from mediffusion_diffusers.commands.mediffusion import COMMANDS


RESULTS = Path(__file__).parent / "results" / "shortcut.json"
LABEL, SHORTCUT = "Mass", "Mass:0.95"
PHANTOMS = "--image_size 64 --num_validation 60 --num_test 300"
TRAINING = (
    "--vae space_to_depth --vae_block_size 4 --resolution 64 --prediction_type sample --diffusion_loss_weight 8 "
    "--snr_gamma 1 --snr_weighting soft_min --lr_scheduler cosine --classifier_loss_weight 3 --use_ema "
    "--validation_steps 1000 --sample_steps 1000 --random_shift 2"
)
BIASED = (
    "--classifier_hidden_size 64 --learning_rate 1e-3 --lr_warmup_steps 20 --train_batch_size 16 "
    "--labelled_batch_size 16 --classifier_noise_prob 0.3 --ema_decay 0.98 --checkpointing_steps 100 "
    "--max_train_steps 300"
)
EDIT = "--quality fast --num_noises 2 --num_inference_steps 4 --mask everywhere --guidance_scale 25 --device cpu"
_GENTLY = (
    "--learning_rate 3e-4 --lr_warmup_steps 5 --train_batch_size 8 --labelled_batch_size 32 --ema_decay 0.95 "
    "--checkpointing_steps 1000"
)
# By name: lessons of each direction, how they are made, how they are learnt, and whether the lessons and their
# originals alone have labels.
REPAIRS = {
    "pairs": (
        60,
        EDIT,
        "--learning_rate 5e-4 --lr_warmup_steps 5 --train_batch_size 8 --labelled_batch_size 24 --ema_decay 0.95 "
        "--checkpointing_steps 1000 --max_train_steps 80",
        True,
    ),
    "all": (150, EDIT, f"{_GENTLY} --max_train_steps 100", False),
    "strong": (
        120,
        "--quality fast --num_noises 2 --num_inference_steps 6 --mask everywhere --guidance_scale 100 --strength 0.8 "
        "--device cpu",
        f"{_GENTLY} --max_train_steps 100",
        False,
    ),
    "region": (
        120,
        "--quality fast --num_noises 2 --num_inference_steps 6 --mask auto --guidance_scale 80 --device cpu",
        f"{_GENTLY} --max_train_steps 200",
        False,
    ),
}
RESAMPLES = "--num_resamples 100"


def steps(place: Path) -> list[tuple[str, Path]]:
    """Command lines in their order, and the file that says that each is done."""
    unet = examples.checkpoint() / "unet"
    lines = [
        (
            f"prepare phantom --output_dir {place}/planted --num_train 800 {PHANTOMS} --shortcut {SHORTCUT}",
            "planted/dataset_info.json",
        ),
        (f"prepare phantom --output_dir {place}/free --num_train 0 {PHANTOMS}", "free/dataset_info.json"),
        (
            f"train joint --unet_path {unet} --dataset_dir {place}/planted --output_dir {place}/biased {TRAINING} "
            f"{BIASED}",
            "biased/model_index.json",
        ),
        (
            f"audit --model {place}/biased --dataset_dir {place}/planted --output_dir {place}/audit "
            f"--labels {LABEL} --num_images_per_label 20 {EDIT} {RESAMPLES}",
            "audit/audit.json",
        ),
        _evaluation(place, "biased"),
        (
            f"train joint --unet_path {place}/biased/unet --dataset_dir {place}/planted --output_dir {place}/control "
            f"{TRAINING} {_GENTLY} --max_train_steps 100",
            "control/model_index.json",
        ),
        _evaluation(place, "control"),
    ]
    for name, (num_lessons, edit, options, only_pairs) in REPAIRS.items():
        mended = f"{place}/mended-{name}"
        split = f"--labelled_split {mended}/counterfactuals-split.json " if only_pairs else ""
        lines += [
            (
                f"prepare counterfactuals --model {place}/biased --dataset_dir {place}/planted --output_dir {mended} "
                f"--teacher truth --labels {LABEL} --num_images_per_label {num_lessons} {edit}",
                f"mended-{name}/dataset_info.json",
            ),
            (
                f"train joint --unet_path {place}/biased/unet --dataset_dir {mended} {split}--output_dir "
                f"{place}/repaired-{name} {TRAINING} {options}",
                f"repaired-{name}/model_index.json",
            ),
            _evaluation(place, f"repaired-{name}"),
        ]
    return [(line, place / done) for line, done in lines]


def _evaluation(place: Path, model: str) -> tuple[str, str]:
    """Of a model, on the test patients without markers."""
    line = f"evaluate classification --model {place}/{model} --dataset_dir {place}/free --device cpu {RESAMPLES}"
    return f"{line} --output_dir {place}/{model}-free", f"{model}-free/classification.json"


def run(line: str) -> None:
    """Run a command line of `mediffusion` in this process."""
    name, *words = line.split()
    command = COMMANDS[name]
    if isinstance(command, tuple):
        command = command[1][words.pop(0)]
    command.main(words)


def results(place: Path) -> dict[str, Any]:
    """What came of it."""
    audit = read_json(place / "audit" / "audit.json")
    finding = audit["findings"][LABEL]
    groups = {f"{one['key']}: {one['group']}": one["auroc"][LABEL] for one in audit["subgroups"]}
    found = {
        model: _without_markers(place, model)
        for model in ("biased", "control", *(f"repaired-{name}" for name in REPAIRS))
    }
    label, share = SHORTCUT.split(":")
    return {
        "what": f"Phantoms with a marker that goes with {label} ({share} of the images with it, and the rest of those "
        "without); figures without markers are of the same test patients drawn without any.",
        "command": "python benchmarks/shortcut.py --output_dir runs/shortcut",
        "audit": {
            "num_images": finding["num_images"],
            **finding["planted"],
            "share_of_images_by_place": {one["name"]: one["share_of_images"] for one in finding["places"]},
            "suspect": [one["name"] for one in finding["places"] if one["is_suspect"]],
            f"auroc_of_{LABEL}_with_markers_about": groups,
        },
        "auroc_without_markers": found,
        "points_gained_by_repair": {
            name: 100 * (found[f"repaired-{name}"][LABEL] - found["biased"][LABEL]) for name in REPAIRS
        },
        "lessons": {name: read_json(place / f"mended-{name}" / "dataset_info.json")["notes"][-1] for name in REPAIRS},
    }


def _without_markers(place: Path, model: str) -> dict[str, float]:
    figures = read_json(place / f"{model}-free" / "classification.json")
    others = [one["auroc"] for name, one in figures["per_label"].items() if name != LABEL]
    return {
        LABEL: figures["per_label"][LABEL]["auroc"],
        "other_findings": sum(others) / len(others),
        "macro": figures["macro_auroc"],
    }


def main() -> None:
    """Make what is missing, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output_dir", type=Path, required=True)
    place = parser.parse_args().output_dir
    for line, done in steps(place):
        if not done.is_file():
            print(f"mediffusion {line}", flush=True)
            run(line)
    write_json(RESULTS, results(place))
    print(f"Written: {RESULTS}")


if __name__ == "__main__":
    main()
