"""A published checkpoint answers the same where this package is not installed: from the Hub, and from a folder."""

from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import snapshot_download

from mediffusion_diffusers import (
    MediffusionClassifyPipeline,
    MediffusionCounterfactualPipeline,
    MediffusionGuidedPipeline,
)
from mediffusion_diffusers.publishing.upload import publish_pipeline_folder


ONE_FILE = Path(__file__).parents[2] / "pipelines" / "mediffusion_classify.py"
ANSWER = '''
def answers(classify, counterfactual, guided):
    """What three pipelines say of the same image, as arrays by name."""
    image = np.random.default_rng(0).random((2, 16, 16, 1), dtype=np.float32)
    for pipe in (classify, counterfactual, guided):
        pipe.set_progress_bar_config(disable=True)
    explained = counterfactual(image, away=["Mass"], mask="auto", output_type="np")
    generator = torch.Generator().manual_seed(0)
    generated = guided("Effusion", num_inference_steps=2, generator=generator, output_type="np")
    return {
        "probabilities": classify(image).probabilities,
        "images": explained.images,
        "null_images": explained.null_images,
        "plain_gradient_images": explained.plain_gradient_images,
        "generated": generated.images,
    }
'''
# Of what this project needs only torch, diffusers, transformers, pillow and what they need themselves.
WITHOUT_THE_PACKAGE = f"""
import sys


class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "mediffusion_diffusers":
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)


sys.meta_path.insert(0, NotInstalled())
for name in ("accelerate", "datasets", "evaluate", "jinja2", "sklearn", "pydicom"):
    sys.modules[name] = None
import numpy as np
import torch
from diffusers import DiffusionPipeline
{ANSWER}
for place, source in (("hub", "org/model"), ("folder", sys.argv[1])):
    pipes = [
        DiffusionPipeline.from_pretrained(source, custom_pipeline=name, trust_remote_code=True)
        for name in ("mediffusion_classify", "mediffusion_counterfactual", "mediffusion_guided")
    ]
    np.savez(f"{{sys.argv[2]}}/{{place}}.npz", **answers(*pipes))
try:  # a folder that was saved and never published, with one of the files by itself
    DiffusionPipeline.from_pretrained(sys.argv[3], custom_pipeline=sys.argv[4], trust_remote_code=True)
except ModuleNotFoundError as error:
    print(error)
"""


@pytest.fixture
def published(hub, pipeline_folder):
    with hub.this_process(hub.token):
        publish_pipeline_folder(pipeline_folder, "org/model")
    return "org/model"


def package_answers(source):
    scope = {"np": np, "torch": torch}
    exec(ANSWER, scope)
    kinds = (MediffusionClassifyPipeline, MediffusionCounterfactualPipeline, MediffusionGuidedPipeline)
    return scope["answers"](*(kind.from_pretrained(source) for kind in kinds))


def test_without_the_package_the_answers_are_the_same_bit_for_bit(hub, published, pipeline_folder, tmp_path):
    with hub.this_process():
        folder = snapshot_download(published, local_dir=tmp_path / "copy")
        expected = package_answers(published)
    completed = hub.run_python(WITHOUT_THE_PACKAGE, folder, tmp_path, pipeline_folder, ONE_FILE, timeout=600)
    assert completed.stdout == "No module named 'mediffusion_diffusers'\n"
    assert "might require" not in completed.stderr and "Expected types" not in completed.stderr, completed.stderr
    for place in ("hub", "folder"):
        with np.load(tmp_path / f"{place}.npz") as found:
            for name, values in expected.items():
                np.testing.assert_array_equal(found[name], values, err_msg=f"{name}, {place}")


def test_the_package_runs_its_own_code_without_a_question_and_offline(hub, published, tmp_path):
    machine = {"HF_HOME": str(tmp_path / "home")}
    with hub.this_process(environment=machine):
        online = MediffusionClassifyPipeline.from_pretrained(published)
    with hub.this_process(environment={**machine, "HF_HUB_OFFLINE": "1"}):
        offline = MediffusionClassifyPipeline.from_pretrained(published)
    for pipe in (online, offline):
        assert type(pipe.unet).__module__ == "mediffusion_diffusers.models.joint_unet_2d"
        assert type(pipe.vae).__module__ == "mediffusion_diffusers.models.autoencoder_space_to_depth"
        assert pipe.config["unet"] == ("mediffusion_diffusers", "JointUNet2DModel")


def test_what_was_loaded_is_saved_as_before(pipeline_folder, tmp_path):
    pipe = MediffusionClassifyPipeline.from_pretrained(pipeline_folder)
    pipe.save_pretrained(tmp_path / "again")
    entry = '"mediffusion_diffusers",\n    "JointUNet2DModel"'
    assert entry in (tmp_path / "again" / "model_index.json").read_text()
