import shutil

import pytest
from support.components import tiny_scheduler, tiny_unet, tiny_vae
from support.studies import save_pipeline

from mediffusion_diffusers import MediffusionClassifyPipeline
from mediffusion_diffusers.evaluation.provenance import checkpoint_hash, loaded_checkpoint_hash


def write(folder, content=b"weights"):
    (folder / "unet").mkdir(parents=True)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(content)
    return folder


@pytest.mark.parametrize("place", ["model", "checkpoint-10/model", "runs/checkpoint-tests/checkpoint-3"])
def test_the_same_weights_have_the_same_hash_wherever_they_lie(tmp_path, place):
    folder = write(tmp_path / place)
    assert checkpoint_hash(folder) == checkpoint_hash(write(tmp_path / "elsewhere"))
    assert checkpoint_hash(folder) != checkpoint_hash(write(tmp_path / "others", b"other weights"))


def test_checkpoints_of_the_training_and_configs_do_not_count(tmp_path):
    folder = write(tmp_path / "model")
    before = checkpoint_hash(folder)
    write(folder / "checkpoint-10")
    (folder / "unet" / "config.json").write_text("{}")
    assert checkpoint_hash(folder) == before
    with pytest.raises(ValueError, match="holds no safetensors weights"):
        checkpoint_hash(write(tmp_path / "run" / "checkpoint-10").parent)


def test_a_loaded_pipeline_is_named_after_its_folder(tmp_path):
    folder = save_pipeline(tmp_path / "model")
    pipe = MediffusionClassifyPipeline.from_pretrained(folder)
    assert loaded_checkpoint_hash(pipe) == checkpoint_hash(folder)
    shutil.rmtree(folder)
    for homeless in (pipe, MediffusionClassifyPipeline(tiny_vae(), tiny_unet(), tiny_scheduler())):
        with pytest.raises(ValueError, match="must be loaded from a folder or the Hub"):
            loaded_checkpoint_hash(homeless)
