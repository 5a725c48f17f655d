import pytest
from support.components import tiny_pipeline

from mediffusion_diffusers import MediffusionCounterfactualPipeline


@pytest.fixture(scope="session")
def pipeline():
    defaults = {"strength": 0.2, "guidance_scale": 5.0, "num_inference_steps": 2}
    return tiny_pipeline(MediffusionCounterfactualPipeline, guidance_defaults=defaults)


@pytest.fixture
def pipeline_folder(pipeline, tmp_path):
    """A saved pipeline with a card of its own, and around it what a training run leaves behind."""
    folder = tmp_path / "run"
    pipeline.save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\ntags: [mediffusion]\n---\n\n# Our own card\n")
    for left_behind in (
        "checkpoint-10/unet.safetensors",
        ".checkpoint-20.partial/unet.safetensors",
        "unet/optimizer.bin",
        "logs/events.out.tfevents.1",
        "training_config.json",
        ".env",
        "token",
    ):
        path = folder / left_behind
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("not for the public")
    return folder
