import pytest
from support.studies import save_oracle, save_pipeline

from mediffusion_diffusers.data.phantom import prepare_phantoms
from mediffusion_diffusers.data.schema import load_info
from mediffusion_diffusers.evaluation.counterfactual_study import CounterfactualStudyRunner


EDIT = {"start": "inversion", "num_inference_steps": 2, "strength": 0.3, "guidance_scale": 20.0}


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A pipeline, phantoms with a shortcut, and an oracle."""
    root = tmp_path_factory.mktemp("audit")
    prepare_phantoms(root / "data", 24, 4, 24, image_size=16, seed=2, shortcut="Effusion:0.9", show_progress=False)
    save_pipeline(root / "pipeline")
    save_oracle(root / "oracle", load_info(root / "data"))
    return root


@pytest.fixture
def runner(world):
    return CounterfactualStudyRunner(world / "pipeline", world / "data", "train", world / "oracle", EDIT)
