"""`train_joint.py --push_to_hub` ends on the Hub, from where a machine with an empty cache explains an image."""

import numpy as np

from mediffusion_diffusers import MediffusionCounterfactualPipeline
from mediffusion_diffusers.data.phantom import prepare_phantoms


def test_a_run_publishes_its_pipeline_and_card(hub, run_script, tmp_path):
    data, runs = tmp_path / "data", tmp_path / "runs"
    prepare_phantoms(data, num_train=24, num_validation=12, num_test=0, image_size=16, show_progress=False)
    arguments = f"""
        --dataset_dir {data} --output_dir {runs} --resolution 16 --vae space_to_depth --max_train_steps 2
        --block_out_channels 8 16 --down_block_types DownBlock2D DownBlock2D --norm_num_groups 4 --layers_per_block 1
        --train_batch_size 4 --labelled_batch_size 4 --validation_steps 2 --checkpointing_steps 2
        --counterfactual_guidance_scale 7 --push_to_hub --hub_model_id org/mediffusion-phantom
    """.split()
    with hub.this_process(hub.token):
        completed = run_script("train_joint.py", *arguments)

    assert completed.exit_code == 0 and hub.token not in completed.said
    assert (runs / "checkpoint-2").is_dir()
    paths = hub.repository("org/mediffusion-phantom").paths()
    assert not any("checkpoint" in path or "training_config" in path for path in paths)
    card = hub.read("org/mediffusion-phantom", "README.md").decode()
    assert card == (runs / "README.md").read_text(encoding="utf-8")
    assert 'from_pretrained("org/mediffusion-phantom")' in card and "| `max_train_steps` | 2 |" in card
    assert hub.token not in card and str(tmp_path) not in card
    with hub.this_process():
        pipe = MediffusionCounterfactualPipeline.from_pretrained("org/mediffusion-phantom")
    output = pipe(np.zeros((16, 16), dtype=np.float32), away="Effusion", output_type="np")
    assert output.settings["guidance_scale"] == 7.0 and output.images.shape == (1, 16, 16, 1)


def test_an_autoencoder_is_published_without_pictures_of_patients(hub, run_script, tmp_path):
    data, runs = tmp_path / "data", tmp_path / "runs"
    prepare_phantoms(data, num_train=8, num_validation=4, num_test=0, image_size=16, show_progress=False)
    arguments = f"""
        --dataset_dir {data} --output_dir {runs} --resolution 16 --block_out_channels 8 8 --layers_per_block 1
        --norm_num_groups 4 --train_batch_size 4 --max_train_steps 2 --validation_steps 2 --checkpointing_steps 2
        --disc_start 1 --disc_num_layers 2 --disc_channels 4 --push_to_hub --hub_model_id org/phantom-vae
    """.split()
    with hub.this_process(hub.token):
        completed = run_script("train_autoencoder.py", *arguments)

    assert completed.exit_code == 0 and hub.token not in completed.said
    assert (runs / "samples").is_dir() and (runs / "checkpoint-2" / "discriminator.safetensors").is_file()
    paths = hub.repository("org/phantom-vae").paths()
    assert {"config.json", "diffusion_pytorch_model.safetensors", "README.md"} <= set(paths)
    assert not [path for path in paths if path.startswith(("samples", "checkpoint", "training_config"))]
    card = hub.read("org/phantom-vae", "README.md").decode()
    assert 'from_pretrained("org/phantom-vae")' in card and str(tmp_path) not in card
    assert "| saved, step 2 |" in card and "| `disc_start` | 1 |" in card
