"""Tiny trained pipelines, oracles and datasets, sound and unsound, for everything that measures a checkpoint."""

import torch

from mediffusion_diffusers import MediffusionCounterfactualPipeline
from mediffusion_diffusers.data.phantom import PHANTOM_LABELS, prepare_phantoms
from mediffusion_diffusers.data.schema import DatasetInfo, load_info, make_row
from mediffusion_diffusers.data.writer import write_prepared
from mediffusion_diffusers.evaluation.measure_options import MeasureOptions
from mediffusion_diffusers.models.oracle_classifier import OracleClassifier
from mediffusion_diffusers.training.oracle.config import NetworkOptions
from mediffusion_diffusers.training.oracle.task import build_oracle
from support.components import tiny_scheduler, tiny_unet, tiny_vae


QUICK = MeasureOptions(num_true_ways=2, region_controls=False)
QUICK_LINE = ("--num_true_ways", "2", "--no-region_controls")
# They find three labels in every image, and the others in none.
THRESHOLDS = [1e-6, 1e-6, 1e-6, 1 - 1e-6, 1 - 1e-6]


def save_pipeline(folder, **unet):
    """An untrained pipeline for phantoms of 16x16."""
    config = {"id2label": dict(enumerate(PHANTOM_LABELS)), "label_thresholds": THRESHOLDS, **unet}
    MediffusionCounterfactualPipeline(tiny_vae(), tiny_unet(**config), tiny_scheduler()).save_pretrained(folder)
    return folder


def save_oracle(folder, info):
    """An untrained outside classifier for a dataset."""
    torch.manual_seed(3)
    OracleClassifier(build_oracle(info, 16, NetworkOptions([8, 8], [1, 1]))).save_pretrained(folder)
    return folder


def prepare_world(root, num_train=0):
    """A pipeline, phantoms (as `data`) and an oracle, in folders of these names."""
    prepare_phantoms(root / "data", num_train, 12, 40, image_size=16, seed=2, show_progress=False)
    save_pipeline(root / "pipeline")
    save_oracle(root / "oracle", load_info(root / "data"))
    return root


def write_split(folder, pictures, label_rows, split="test", label_names=PHANTOM_LABELS, patients=None):
    """A prepared dataset of one split.

    Args:
        folder: where.
        pictures: encoded pictures, one per row; `None` for a missing one.
        label_rows: 1, 0 or NaN per label, one list per row.
        split: its name.
        label_names: names of the labels.
        patients: patient of each row.
    """
    info = DatasetInfo("made", "", "", "", "multi_label_classification", list(label_names), channels=1, image_size=16)
    rows = [
        make_row(info, picture, f"image-{index}", None if patients is None else patients[index], labels=labels)
        for index, (picture, labels) in enumerate(zip(pictures, label_rows, strict=True))
    ]
    write_prepared(folder, {split: rows}, info, num_rows={split: len(rows)}, show_progress=False)
    return folder
