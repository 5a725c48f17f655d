"""Every training gives on an accelerator what it gives on the CPU, and lets the host run ahead between two records."""

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from diffusers import ModelMixin
from safetensors.torch import load_file
from support.pretend_device import NAME
from support.training import TINY_AUTOENCODER, TINY_JOINT, autoencoder_config, joint_config, oracle_config
from transformers import PreTrainedModel

from mediffusion_diffusers.training.autoencoder.task import train_autoencoder
from mediffusion_diffusers.training.joint.task import train_joint
from mediffusion_diffusers.training.oracle.task import train_oracle


ORACLE = (
    *("--hidden_sizes", 8, 16, "--depths", 1, 1, "--train_batch_size", 8, "--learning_rate", 1e-3),
    *("--lr_scheduler", "constant", "--lr_warmup_steps", 0),
)
JOINT = (*TINY_JOINT, "--classifier_dropout", 0)
PSEUDO = ("--pseudo_label_start_step", 0, "--pseudo_label_threshold", 0.51, "--pos_weight", "balanced")
ADVERSARY = ("--disc_start", 1, "--disc_num_layers", 1, "--disc_channels", 8)
TRAININGS = {
    "joint": (train_joint, joint_config, JOINT),
    "joint, accumulated": (train_joint, joint_config, (*JOINT, "--gradient_accumulation_steps", 2)),
    "joint, few labels": (train_joint, joint_config, (*JOINT, *PSEUDO, "--snr_gamma", 5, "--cache_latents")),
    "joint, without average": (train_joint, joint_config, (*JOINT, "--no-use_ema")),
    "autoencoder": (train_autoencoder, autoencoder_config, (*TINY_AUTOENCODER, *ADVERSARY)),
    "oracle": (train_oracle, oracle_config, ORACLE),
}


@pytest.fixture(autouse=True)
def _saved_from_the_cpu(monkeypatch):
    """A device that is written in Python gives its tensors no addresses, by which savers look for shared weights."""

    def on_the_cpu(save_pretrained, copy):
        def save(model, *args, **kwargs):
            twin = copy(model)
            twin.load_state_dict({name: tensor.cpu() for name, tensor in model.state_dict().items()})
            save_pretrained(twin, *args, **kwargs)

        return save

    for model_class, copy in (
        (ModelMixin, lambda model: type(model).from_config(model.config)),
        (PreTrainedModel, lambda model: type(model)(model.config)),
    ):
        monkeypatch.setattr(model_class, "save_pretrained", on_the_cpu(model_class.save_pretrained, copy))


def train(name, phantoms, output_dir, num_steps, *arguments):
    command, parse, line = TRAININGS[name]
    seldom = ("--logging_steps", 100, "--validation_steps", 100, "--checkpointing_steps", 100)
    places = ("--dataset_dir", phantoms, "--output_dir", output_dir, "--max_train_steps", num_steps)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    command(parse(*line, *seldom, *places, *arguments))
    return output_dir


@pytest.mark.parametrize("name", TRAININGS)
def test_two_steps_are_those_of_the_cpu(name, device, phantoms, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", str(device))
    there = train(name, phantoms, tmp_path / "there" / "run", 2)
    monkeypatch.delenv("ACCELERATE_TORCH_DEVICE")
    here = train(name, phantoms, tmp_path / "here" / "run", 2, "--device", "cpu")
    for path in sorted(here.glob("checkpoint-2/*.safetensors")):
        one, other = load_file(path), load_file(there / "checkpoint-2" / path.name)
        assert one.keys() == other.keys()
        # A step of AdamW is as large as the rate wherever the gradient is not zero: its sign may be one of rounding.
        wrong = [key for key, value in one.items() if not torch.allclose(value.float(), other[key].float(), atol=4e-3)]
        assert wrong == []


@pytest.mark.parametrize("name", TRAININGS)
def test_no_step_waits_between_two_records(name, pretend, phantoms, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", NAME)
    waits = []
    for num_steps in (2, 5):
        pretend.waits.clear()
        train(name, phantoms, tmp_path / str(num_steps) / "run", num_steps)
        waits.append([wait.place for wait in pretend.reads])
    assert sorted(waits[1]) == sorted(waits[0])
