"""A shortcut planted into phantoms, found by an audit and mended by counterfactuals: benchmarks/results/shortcut.json.

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
REPAIR = (
    "--learning_rate 5e-4 --lr_warmup_steps 5 --train_batch_size 8 --labelled_batch_size 24 --ema_decay 0.95 "
    "--checkpointing_steps 1000 --max_train_steps 80"
)
EDIT = "--quality fast --num_noises 2 --num_inference_steps 4 --mask everywhere --guidance_scale 25 --device cpu"
RESAMPLES = "--num_resamples 100"


def steps(place: Path) -> list[tuple[str, Path]]:
    """Command lines in their order, and the file that says that each is done."""
    unet, mended = examples.checkpoint() / "unet", f"{place}/mended"
    evaluate = "evaluate classification --device cpu"
    lines = [
        (f"prepare phantom --output_dir {place}/planted --num_train 800 {PHANTOMS} --shortcut {SHORTCUT}", "planted"),
        (f"prepare phantom --output_dir {place}/free --num_train 0 {PHANTOMS}", "free"),
        (
            f"train joint --unet_path {unet} --dataset_dir {place}/planted --output_dir {place}/biased {TRAINING} "
            f"{BIASED}",
            "biased",
        ),
        (
            f"audit --model {place}/biased --dataset_dir {place}/planted --output_dir {place}/audit-biased "
            f"--labels {LABEL} --num_images_per_label 20 {EDIT} {RESAMPLES}",
            "audit-biased",
        ),
        (
            f"prepare counterfactuals --model {place}/biased --dataset_dir {place}/planted --output_dir {mended} "
            f"--teacher truth --labels {LABEL} --num_images_per_label 60 {EDIT}",
            "mended",
        ),
        (
            f"train joint --unet_path {place}/biased/unet --dataset_dir {mended} --labelled_split "
            f"{mended}/counterfactuals-split.json --output_dir {place}/repaired {TRAINING} {REPAIR}",
            "repaired",
        ),
    ]
    for model in ("biased", "repaired"):
        for data in ("free", "planted"):
            folder = f"eval-{model}-{data}"
            line = f"{evaluate} --model {place}/{model} --dataset_dir {place}/{data} --output_dir {place}/{folder}"
            lines.append((f"{line} {RESAMPLES}", folder))
    finished = {"audit-biased": "audit.json", "biased": "model_index.json", "repaired": "model_index.json"}
    default = {"planted": "dataset_info.json", "free": "dataset_info.json", "mended": "dataset_info.json"}
    return [(line, place / name / {**finished, **default}.get(name, "classification.json")) for line, name in lines]


def run(line: str) -> None:
    """Run a command line of `mediffusion` in this process."""
    name, *words = line.split()
    command = COMMANDS[name]
    if isinstance(command, tuple):
        command = command[1][words.pop(0)]
    command.main(words)


def results(place: Path) -> dict[str, Any]:
    """What came of it."""
    finding = read_json(place / "audit-biased" / "audit.json")["findings"][LABEL]
    found: dict[str, Any] = {}
    for model in ("biased", "repaired"):
        for data in ("free", "planted"):
            figures = read_json(place / f"eval-{model}-{data}" / "classification.json")
            others = [one["auroc"] for name, one in figures["per_label"].items() if name != LABEL]
            found[f"{model}, {'without' if data == 'free' else 'with'} markers"] = {
                f"auroc_{LABEL.lower()}": figures["per_label"][LABEL]["auroc"],
                "auroc_other_findings": sum(others) / len(others),
                "macro_auroc": figures["macro_auroc"],
                "num_images": figures["num_images"],
            }
    before, after = (found[f"{model}, without markers"] for model in ("biased", "repaired"))
    lessons = read_json(place / "mended" / "dataset_info.json")["notes"][-1]
    return {
        "what": f"Phantoms with a marker that goes with {SHORTCUT.split(':')[0]} in {SHORTCUT.split(':')[1]} of the "
        "images; the test patients with and without it are the same.",
        "command": "python benchmarks/shortcut.py --output_dir runs/shortcut",
        "audit": {
            "num_images": finding["num_images"],
            **finding["planted"],
            "places": {one["name"]: one["share_of_images"] for one in finding["places"]},
            "suspect": [one["name"] for one in finding["places"] if one["is_suspect"]],
        },
        "repair": {
            "lessons": lessons,
            "auroc": found,
            "points_without_markers": {
                name: 100 * (after[name] - before[name])
                for name in (f"auroc_{LABEL.lower()}", "auroc_other_findings", "macro_auroc")
            },
        },
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
