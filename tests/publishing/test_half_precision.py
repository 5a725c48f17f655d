"""A pipeline at half its size."""

import pytest
import torch
from safetensors.torch import load_file
from support.components import random_pil, tiny_pipeline

from mediffusion_diffusers import MediffusionClassifyPipeline
from mediffusion_diffusers.publishing.half_precision import write_half_precision


@pytest.fixture
def trained(tmp_path):
    pipe = tiny_pipeline(MediffusionClassifyPipeline)
    pipe.save_pretrained(tmp_path / "run")
    (tmp_path / "run" / "README.md").write_text("card")
    for folder in ("checkpoint-1", "samples"):
        (tmp_path / "run" / folder).mkdir()
    return pipe, tmp_path / "run"


def test_the_copy_answers_alike_in_float32_and_is_half_the_size(trained, tmp_path):
    pipe, run = trained
    write_half_precision(run, tmp_path / "boxed")
    copy = MediffusionClassifyPipeline.from_pretrained(tmp_path / "boxed")
    assert copy.unet.dtype == torch.float32
    images = random_pil()
    torch.testing.assert_close(copy(images).logits, pipe(images).logits, atol=5e-3, rtol=0)
    sizes = [
        (folder / "unet" / "diffusion_pytorch_model.safetensors").stat().st_size
        for folder in (run, tmp_path / "boxed")
    ]
    assert sizes[1] < 0.6 * sizes[0]
    assert {path.name for path in (tmp_path / "boxed").iterdir()} == {
        "README.md",
        "model_index.json",
        "unet",
        "vae",
        "scheduler",
    }


def test_it_replaces_an_earlier_copy(trained, tmp_path):
    _, run = trained
    write_half_precision(run, tmp_path / "boxed")
    (tmp_path / "boxed" / "old.txt").write_text("old")
    write_half_precision(run, tmp_path / "boxed")
    assert not (tmp_path / "boxed" / "old.txt").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_weight_that_float16_cannot_hold_is_refused_and_leaves_what_was_there(trained, tmp_path):
    pipe, run = trained
    write_half_precision(run, tmp_path / "boxed")
    before = load_file(tmp_path / "boxed" / "unet" / "diffusion_pytorch_model.safetensors")["conv_in.weight"]
    with torch.no_grad():
        pipe.unet.conv_in.weight[0, 0, 0, 0] = 1e5
    pipe.save_pretrained(run)
    with pytest.raises(ValueError, match=r"'conv_in\.weight' hold numbers above 65504"):
        write_half_precision(run, tmp_path / "boxed")
    after = load_file(tmp_path / "boxed" / "unet" / "diffusion_pytorch_model.safetensors")["conv_in.weight"]
    assert torch.equal(before, after)


def test_a_folder_without_a_pipeline_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"`source` must be the folder of a pipeline, which has a model_index.json"):
        write_half_precision(tmp_path, tmp_path / "boxed")
