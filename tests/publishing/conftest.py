"""A run as training leaves it, and real evaluations of a tiny pipeline."""

import json

import pytest
import torch
from support.components import tiny_pipeline, tiny_scheduler, tiny_unet, tiny_vae
from support.studies import QUICK

from mediffusion_diffusers import MediffusionCounterfactualPipeline
from mediffusion_diffusers.data.phantom import PHANTOM_LABELS, prepare_phantoms
from mediffusion_diffusers.data.schema import DatasetInfo, load_info
from mediffusion_diffusers.data.splits import LabelledSplit
from mediffusion_diffusers.evaluation.classification_study import study_classification
from mediffusion_diffusers.evaluation.counterfactual_study import CounterfactualStudyRunner
from mediffusion_diffusers.models.oracle_classifier import OracleClassifier
from mediffusion_diffusers.training.oracle.config import NetworkOptions
from mediffusion_diffusers.training.oracle.task import build_oracle


LABELS = ["Cardiomegaly", "Effusion", "Mass"]
SETTINGS = {"num_inference_steps": 2, "guidance_scale": 20.0, "strength": 0.3}


@pytest.fixture(scope="package")
def pipeline():
    defaults = {"strength": 0.2, "guidance_scale": 5.0}
    return tiny_pipeline(MediffusionCounterfactualPipeline, guidance_defaults=defaults)


@pytest.fixture
def run(pipeline, tmp_path):
    """Everything `render_model_card` takes."""
    info = DatasetInfo(
        name="phantom",
        source="procedural; no person was imaged",
        licence="CC BY-NC 4.0 (non-commercial)",
        attribution="Jane Doe et al. (2020)",
        problem_type="multi_label_classification",
        label_names=LABELS,
        channels=1,
        num_rows={"train": 1200, "test": 300},
        notes=["Findings are independent of one another."],
        demographics={
            "train": {
                "images": 1200,
                "patients": 900,
                "sex": {"F": 500, "M": 700},
                "age": {"known": 1200, "median": 54.0, "lower_quartile": 40.0, "upper_quartile": 63.0},
            }
        },
    )
    (tmp_path / "vae").mkdir()
    arguments = {
        "seed": 7,
        "learning_rate": 3e-4,
        "use_ema": True,
        "dataset_dir": "/home/jane/data",
        "output_dir": "runs/joint",
        "vae_path": str(tmp_path / "vae"),
        "unet_path": "org/unet",
        "unet_subfolder": None,
        "hub_model_id": "org/model",
        "block_out_channels": [8, 16],
    }
    metrics = [
        {"kind": "train", "step": 10, "diffusion_loss": 0.5, "seconds": 30.0},
        {"kind": "validation", "step": 10, "macro_auroc": 0.61, "auroc": {"Mass": 0.61}, "num_images": 64},
        {"kind": "train", "step": 20, "diffusion_loss": 0.4, "seconds": 60.0},
        {"kind": "validation", "step": 20, "macro_auroc": 0.8125, "auroc": {"Mass": 0.8125}, "num_images": 64},
    ]
    split = LabelledSplit("phantom", 10.0, "patient", 3, ("a", "b"), 2, dict.fromkeys(LABELS, 1))
    return {
        "pipeline": pipeline,
        "dataset_info": info,
        "training_config": {"arguments": arguments, "num_train_images": 1200, "versions": {"torch": "2.13.0"}},
        "metrics": metrics,
        "labelled_split": split,
        "repo_id": "org/mediffusion-phantom",
    }


@pytest.fixture(scope="package")
def evaluated(tmp_path_factory):
    """A pipeline folder without a card, its classification and its counterfactual study, all of tiny random models."""
    root = tmp_path_factory.mktemp("evaluated")
    prepare_phantoms(root / "data", 0, 0, 40, image_size=16, seed=2, show_progress=False)
    unet = tiny_unet(id2label=dict(enumerate(PHANTOM_LABELS)), label_thresholds=[1e-6, 1e-6, 1e-6, 1 - 1e-6, 1 - 1e-6])
    MediffusionCounterfactualPipeline(tiny_vae(), unet, tiny_scheduler()).save_pretrained(root / "pipeline")
    torch.manual_seed(3)
    oracle = OracleClassifier(build_oracle(load_info(root / "data"), 16, NetworkOptions([8, 8], [1, 1])))
    oracle.save_pretrained(root / "oracle")
    runner = CounterfactualStudyRunner(root / "pipeline", root / "data", "test", root / "oracle", SETTINGS)
    return {
        "pipeline": root / "pipeline",
        "info": load_info(root / "data"),
        "classification": json.loads(json.dumps(study_classification(root / "pipeline", root / "data", "test", 20))),
        "study": runner.run(("remove", "add"), num_images_per_label=2, options=QUICK),
    }
