import dataclasses
import json
import math
import re
import sys
import typing
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.training import TINY_AUTOENCODER, TINY_JOINT, autoencoder_config, joint_config, oracle_config

from mediffusion_diffusers.counterfactual_options import stored_options
from mediffusion_diffusers.data.schema import load_prepared
from mediffusion_diffusers.data.splits import LabelledSplit
from mediffusion_diffusers.models import SpaceToDepthAutoencoder
from mediffusion_diffusers.options import range_of
from mediffusion_diffusers.training.autoencoder.config import AutoencoderConfig
from mediffusion_diffusers.training.autoencoder.dry_run import describe_autoencoder_run
from mediffusion_diffusers.training.joint.components import build_noise_scheduler, sampling_scheduler
from mediffusion_diffusers.training.joint.config import DiffusionOptions, JointConfig, LabelOptions
from mediffusion_diffusers.training.joint.dry_run import describe_joint_run
from mediffusion_diffusers.training.oracle.config import OracleConfig
from mediffusion_diffusers.training.presets import AUTOENCODER_PRESETS, JOINT_PRESETS
from mediffusion_diffusers.training.run.memory_estimate import saved_activation_bytes


SCRIPTS = Path(__file__).parents[2] / "training"


def options(config):
    """All options of a configuration as attributes."""
    return SimpleNamespace(**config.to_dict())


@pytest.mark.parametrize("preset", JOINT_PRESETS)
def test_joint_presets_are_valid(preset, tmp_path):
    (tmp_path / "dataset_info.json").touch()
    vae = () if JOINT_PRESETS[preset].model.vae else ("--vae_path", "org/autoencoder")
    config = joint_config("--preset", preset, "--dataset_dir", tmp_path, "--output_dir", tmp_path, *vae)
    config.check()
    given = {"preset": preset, "dataset_dir": str(tmp_path), "output_dir": str(tmp_path)}
    given |= {"vae_path": "org/autoencoder"} if vae else {}
    assert config.to_dict() == {**JOINT_PRESETS[preset].to_dict(), **given}


@pytest.mark.parametrize("preset", AUTOENCODER_PRESETS)
def test_autoencoder_presets_are_valid(preset, tmp_path):
    (tmp_path / "dataset_info.json").touch()
    args = autoencoder_config("--preset", preset, "--dataset_dir", tmp_path, "--output_dir", tmp_path)
    args.check()


def test_explicit_arguments_override_a_preset_wherever_they_stand():
    for line in (
        ("--learning_rate", 7, "--preset", "isic2019-2pct"),
        ("--preset", "isic2019-2pct", "--learning_rate", 7),
    ):
        args = options(joint_config(*line))
        assert args.learning_rate == 7 and args.classifier_loss_weight == 1e-3 and args.horizontal_flip
    assert not options(joint_config("--preset", "isic2019-2pct", "--no-horizontal_flip")).horizontal_flip


def test_the_papers_settings():
    """App. D."""
    two, five, twenty = (options(joint_config("--preset", f"chestxray14-{share}pct")) for share in (2, 5, 20))
    assert (two.classifier_loss_weight, two.classifier_learning_rate) == (5e-5, 1e-5)
    assert (five.classifier_loss_weight, five.classifier_learning_rate) == (1.5e-4, 2e-5)
    assert (twenty.classifier_loss_weight, twenty.classifier_learning_rate) == (1e-3, 5e-5)
    for args in (two, five, twenty):
        assert (args.max_train_steps, args.train_batch_size, args.labelled_batch_size) == (200_000, 64, 32)
        assert (args.learning_rate, args.classifier_start_step, args.horizontal_flip) == (5e-5, 5000, False)


def test_every_experiment_of_the_paper_has_its_row():
    """Tables 1 to 3 and App. C and D."""
    for share in (2, 5, 10, 15, 20, 100):
        assert f"chestxray14-{share}pct" in JOINT_PRESETS
    for share in (2, 5, 10, 20):
        args = options(joint_config("--preset", f"isic2019-{share}pct"))
        assert (args.max_train_steps, args.learning_rate, args.classifier_loss_weight) == (20_000, 5e-5, 1e-3)
    for share, num_images in ((2, 1731), (5, 4327), (10, 8653), (20, 17305), (100, 86524)):
        args = options(joint_config("--preset", f"chestxray14-{share}pct-no-diffusion"))
        assert (args.learning_rate, args.labelled_batch_size, args.diffusion_loss_weight) == (1e-4, 64, 0)
        assert args.max_train_steps == 100 * -(-num_images // 64)
    for name in ("chestxray14", "isic2019"):
        args = options(autoencoder_config("--preset", f"{name}-autoencoder"))
        assert (args.max_train_steps, args.train_batch_size, args.learning_rate) == (300_000, 64, 4.5e-6)
        assert (args.disc_start, args.disc_weight, args.kl_weight) == (50_001, 0.5, 1e-6)
        assert (args.adam_beta1, args.adam_beta2, args.perceptual_weight) == (0.5, 0.9, 1.0)


def test_the_dry_run_of_the_papers_autoencoder():
    args = autoencoder_config("--preset", "chestxray14-autoencoder", "--train_batch_size", 2, "--dry_run")
    args.check()
    facts = describe_autoencoder_run(args)
    assert facts["num_vae_parameters"] == 83_649_253 and facts["latent_shape"] == [4, 32, 32]
    assert facts["num_adversarial_steps"] == 300_000 - 50_001
    memory = facts["memory_with_one_process"]
    assert memory["adamw_gib"] == pytest.approx(2 * memory["gradients_gib"], abs=2e-3)
    assert memory["sum_gib"] > memory["activations_gib"] > 2
    assert "the perceptual network and its activations" in memory["not_included"]


def test_an_unknown_preset_is_refused():
    with pytest.raises(ValueError, match=r"`preset` must be one of \['chestxray14-100pct', .*, but got 'cxr'"):
        joint_config("--preset", "cxr")


def test_a_dry_run_needs_no_data():
    args = joint_config("--preset", "chestxray14-2pct", "--dry_run")
    args.check()
    facts = describe_joint_run(args)
    assert facts["num_unet_parameters"] == 257_733_124 and facts["num_classifier_features"] == 5632
    assert facts["num_classification_steps"] == len(range(5000, 200_000, 4))
    assert facts["latent_shape"] == [4, 32, 32]
    memory = facts["memory_with_one_process"]
    assert memory["adamw_gib"] == pytest.approx(2 * 263_502_341 * 4 / 2**30, abs=1e-3)
    assert "the autoencoder" in memory["not_included"]


def test_a_dry_run_describes_the_data(phantoms):
    split = phantoms / "labelled-50.json"
    args = joint_config(*TINY_JOINT, "--dataset_dir", phantoms, "--labelled_split", split, "--dry_run")
    facts = describe_joint_run(args)
    assert facts["num_labelled_images"] == 12 and facts["dataset"]["num_rows"] == {"train": 24, "validation": 12}
    assert facts["latent_shape"] == [4, 8, 8]
    labels = np.array(load_prepared(phantoms, "train")["labels"][:])
    rows = LabelledSplit.load(split).indices(load_prepared(phantoms, "train"))
    assert list(facts["labelled_images_per_label"].values()) == labels[rows].sum(axis=0).tolist()


def test_activations_are_those_that_the_backward_pass_needs():
    """A linear map keeps its input, a product both factors; the parameters and a repeated tensor count once."""
    linear = torch.nn.Linear(10, 5)
    inputs = torch.zeros(3, 10, requires_grad=True)
    assert saved_activation_bytes(lambda: linear(inputs), list(linear.parameters())) == 3 * 10 * 4
    assert saved_activation_bytes(lambda: (inputs * inputs) * 2, []) == 3 * 10 * 4


def test_the_token_is_not_public():
    args = joint_config("--hub_token", "hf_secret")
    assert "hf_secret" not in json.dumps(args.public())


BAD_JOINT_ARGUMENTS = [
    (("--dataset_name", "org/data"), "Exactly one of `dataset_dir`"),
    (("--seed", 2**64), r"`seed` must be a whole number in \[0, 9.2"),
    (("--compile", "nothing"), "`compile` must be a backend of torch.compile, one of .*inductor.* but got 'nothing'"),
    (("--dataset_dir", Path(__file__).parent), "`dataset_dir` must be a folder .* holds no dataset_info.json"),
    (("--dataset_dir", "nowhere"), "`dataset_dir` must be a folder .* but 'nowhere' is no folder"),
    (("--labelled_split", "nowhere.json"), "`labelled_split` must be a split file"),
    (("--vae_path", "org/vae"), "Exactly one of `vae_path`"),
    (("--max_train_steps", 0), "`max_train_steps` must be a whole number at least 1, but got 0"),
    (("--train_batch_size", -1), "`train_batch_size` must be a whole number at least 1, but got -1"),
    (("--checkpoints_total_limit", 0), "`checkpoints_total_limit` must be a whole number at least 1"),
    (("--labelled_batch_size", 0), "`labelled_batch_size` must be a whole number at least 1"),
    (("--classifier_every", 0), "`classifier_every` must be a whole number at least 1"),
    (("--classifier_loss_weight", -1), "`classifier_loss_weight` must be a number at least 0, but got -1"),
    (("--classifier_noise_prob", 1.5), r"`classifier_noise_prob` must be a number in \[0, 1\], but got 1.5"),
    (("--classifier_max_timestep", 2000), r"`classifier_max_timestep` must be in \[1, 1000\], but got 2000"),
    (
        ("--num_train_timesteps", 500, "--sample_inference_steps", 501),
        r"`sample_inference_steps` must be in \[1, 500\]",
    ),
    (("--diffusion_loss_weight", 0, "--classifier_start_step", 5), "leaves steps without any loss"),
    (("--diffusion_loss_weight", 0, "--classifier_loss_weight", 0), "At least one of `diffusion_loss_weight`"),
    (("--counterfactual_strength", 1.5), r"`counterfactual_strength` must be a number in \(0, 1\], but got 1.5"),
    (("--learning_rate", 0), "`learning_rate` must be a number above 0"),
    (("--ema_decay", 1), r"`ema_decay` must be a number in \[0, 1\), but got 1"),
    (("--validation_share", 100), r"`validation_share` must be a number in \[0, 100\)"),
    (("--balanced_labelled_sampling", "--square_root_labelled_sampling"), "At most one of `balanced_labelled"),
    (("--push_to_hub",), "`push_to_hub` needs `hub_model_id`"),
    (("--random_crop_scale", 0.5), "`random_crop_scale` must be two numbers, smallest and largest, but got"),
    (("--random_crop_scale", 0.9, 0.5), "`random_crop_scale` must be two numbers, smallest and largest, but got"),
    (("--random_shift", 16), r"`random_shift` must be below `resolution` \(16 pixels\), but got 16"),
    (("--hub_token", "hf_secret", "--report_to", "wandb"), "`hub_token` would be logged by wandb"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_JOINT_ARGUMENTS)
def test_bad_joint_arguments_are_refused(arguments, message, phantoms, tmp_path):
    line = (*TINY_JOINT, "--dataset_dir", phantoms, "--output_dir", tmp_path)
    joint_config(*line).check()
    with pytest.raises(ValueError, match=message):
        joint_config(*line, *arguments).check()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--norm_num_groups", 3),
            "The U-Net's shape, from .*`norm_num_groups`.* does not fit together: num_channels",
        ),
        (("--up_block_types", "Foo", "Bar"), "The U-Net's shape, from .* does not fit together: Foo does not exist"),
        (("--labelled_split", __file__), "`labelled_split` cannot be used"),
    ],
)
def test_what_does_not_fit_together_is_named(arguments, message, phantoms):
    with pytest.raises(ValueError, match=message):
        describe_joint_run(joint_config(*TINY_JOINT, "--dataset_dir", phantoms, *arguments))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"layers_per_block": 1}, "The U-Net has no shape: .* a `unet_config` that names its `block_out_channels`"),
        ({"block_out_channels": [8], "act_fun": "silu"}, "The U-Net's shape, from `unet_config`.*'act_fun'"),
    ],
)
def test_a_config_of_a_unet_that_cannot_be_built_is_refused(config, message, phantoms, tmp_path):
    (tmp_path / "unet.json").write_text(json.dumps(config))
    data = ("--dataset_dir", phantoms, "--resolution", 16, "--vae", "space_to_depth", "--dry_run")
    with pytest.raises(ValueError, match=message):
        describe_joint_run(joint_config(*data, "--unet_config", tmp_path / "unet.json"))


def test_whatever_noise_schedule_is_trained_can_be_sampled_from():
    for name in typing.get_args(typing.get_type_hints(DiffusionOptions)["beta_schedule"]):
        trained = build_noise_scheduler(DiffusionOptions(beta_schedule=name))
        sampled = sampling_scheduler(trained, SpaceToDepthAutoencoder())
        assert torch.equal(sampled.alphas_cumprod, trained.alphas_cumprod)


def test_what_a_run_ends_before_is_named():
    config = joint_config("--preset", "pneumoniamnist-small", "--max_train_steps", 2000)
    assert config.unreached_starts() == {"consolidation_start_step": 2000}
    assert not JOINT_PRESETS["pneumoniamnist-small"].unreached_starts()
    paper = AUTOENCODER_PRESETS["chestxray14-autoencoder"].with_options(max_train_steps=50_001)
    assert paper.unreached_starts() == {"disc_start": 50_001}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--resolution", 15), "`resolution` must be a multiple of 2, which 2 levels"),
        (("--norm_num_groups", 3), "must be a multiple of `norm_num_groups=3`, but got 8"),
        (("--kl_weight", -1), "`kl_weight` must be a number at least 0"),
        (("--latent_channels", 0), "`latent_channels` must be a whole number at least 1"),
    ],
)
def test_bad_autoencoder_arguments_are_refused(arguments, message, phantoms, tmp_path):
    line = (*TINY_AUTOENCODER, "--dataset_dir", phantoms, "--output_dir", tmp_path)
    autoencoder_config(*line).check()
    with pytest.raises(ValueError, match=message):
        autoencoder_config(*line, *arguments).check()


NUMBERS = [
    (config_class, entry.name)
    for config_class in (JointConfig, AutoencoderConfig, OracleConfig)
    for group in vars(config_class()).values()
    for entry in dataclasses.fields(group)
    if range_of(type(group), entry.name) is not None
]


@pytest.mark.parametrize(("config_class", "name"), NUMBERS)
def test_no_option_lets_nan_pass(config_class, name):
    """Nor infinity, nor what lies below its range; each is refused by name."""
    default = config_class().to_dict()[name]
    for bad in (math.nan, math.inf, -1):
        with pytest.raises(ValueError, match=f"`{name}` must be"):
            config_class().with_options(**{name: [bad] if isinstance(default, list) else bad})


def test_every_number_has_a_range():
    names = {name for _, name in NUMBERS}
    for config_class in (JointConfig, AutoencoderConfig, OracleConfig):
        for name, value in config_class().to_dict().items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                assert name in names, name


# Command lines that were written before the options had types.
EARLIER_LINES = [
    ("--no-use_ema", {"use_ema": False}),
    ("--no-horizontal_flip --preset isic2019-2pct", {"horizontal_flip": False}),
    ("--overwrite_output_dir --no-overwrite_output_dir", {"overwrite_output_dir": False}),
    ("--dry_run --gradient_checkpointing --push_to_hub --hub_private_repo", {"dry_run": True, "push_to_hub": True}),
    ("--random_crop_scale 0.8 1.0", {"random_crop_scale": [0.8, 1.0]}),
    ("--block_out_channels 32 64 --down_block_types DownBlock2D AttnDownBlock2D", {"block_out_channels": [32, 64]}),
    ("--pos_weight 1 2.5 3", {"pos_weight": ["1", "2.5", "3"]}),
    ("--pos_weight balanced --balanced_labelled_sampling", {"balanced_labelled_sampling": True}),
    ("--compile", {"compile": "inductor"}),
    ("--compile aot_eager --no-share_forward", {"compile": "aot_eager", "share_forward": False}),
    ("--cache_latents --no-cache_latents", {"cache_latents": False}),
    ("--mixed_precision bf16 --report_to tensorboard", {"mixed_precision": "bf16", "report_to": "tensorboard"}),
    (
        "--counterfactual_strength 0.2 --counterfactual_guidance_scale 3 --counterfactual_num_inference_steps 5",
        {
            "counterfactual_strength": 0.2,
            "counterfactual_guidance_scale": 3.0,
            "counterfactual_num_inference_steps": 5,
        },
    ),
    ("--lr_restart_at_classifier_start --classifier_learning_rate 1e-5", {"classifier_learning_rate": 1e-5}),
]


@pytest.mark.parametrize(("line", "expected"), EARLIER_LINES)
def test_earlier_command_lines_are_understood(line, expected):
    found = joint_config(*line.split()).to_dict()
    assert {name: found[name] for name in expected} == expected


def test_every_stored_option_of_counterfactuals_is_an_option():
    line = "--counterfactual_mask auto --no-counterfactual_follow_inversion --counterfactual_start noise"
    config = joint_config(*line.split(), "--counterfactual_strength", 0.2)
    assert config.counterfactuals.given() == {
        "mask": "auto",
        "follow_inversion": False,
        "start": "noise",
        "strength": 0.2,
    }
    assert JointConfig().counterfactuals.given() == {}
    assert {f"counterfactual_{name}" for name in stored_options()} <= config.public().keys()
    with pytest.raises(ValueError, match="`counterfactual_mask` must be one of 'auto', 'everywhere'"):
        JointConfig().with_options(counterfactual_mask="lungs")


def documented_commands():
    """Every command line of a training script in the documents and benchmarks."""
    root = SCRIPTS.parent
    documents = (root / "docs" / "workflow.md", SCRIPTS / "README.md", *root.glob("benchmarks/*.sh"))
    texts = [path.read_text() for path in documents]
    pattern = r"training/(train_\w+)\.py((?:[^\n\\`]|\\\n)*)"
    for script, line in re.findall(pattern, "\n".join(texts).replace('"', "")):
        words = [word for word in line.replace("\\\n", " ").split() if not word.startswith(("$", "&", ";", "|", "{"))]
        if "--output_dir" in line and "..." not in line:
            yield script, words


@pytest.mark.parametrize(("script", "words"), documented_commands())
def test_documented_command_lines_are_understood(script, words):
    config_class = {"train_joint": JointConfig, "train_autoencoder": AutoencoderConfig, "train_oracle": OracleConfig}
    known = {parameter.flag for parameter in config_class[script].parser().parameters}
    flags = [word.replace("_", "-").replace("--no-", "--") for word in words if word.startswith("--")]
    assert [flag for flag in flags if flag not in known] == []


def test_the_help_keeps_its_groups(capsys):
    with pytest.raises(SystemExit):
        JointConfig.parser().parse(["--help"])
    text = capsys.readouterr().out
    words = " ".join(text.split())
    for group in ("run", "data", "optimizer", "classification", "model", "diffusion", "speed", "Hub"):
        assert f"\n{group}:\n" in text
    assert "A number in [0, 1)." in words and "(default: 0.0001)" in words


def test_defaults_of_a_training_are_its_own():
    """Each training has betas, steps and seeds of its own, also on its command line."""
    for config_class in (JointConfig, AutoencoderConfig, OracleConfig):
        assert config_class.parse([], {}) == config_class()
    assert autoencoder_config().optimizer.adam_betas == (0.5, 0.9) and oracle_config().run.seed == 1000


def test_options_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match=r"JointConfig has no options \['learning_rat'\]"):
        JointConfig().with_options(learning_rat=1.0)
    with pytest.raises(ValueError, match="--learning-rat"):
        joint_config("--learning_rat", 1)


def test_the_token_is_in_no_text_of_a_configuration():
    assert "hf_secret" not in repr(joint_config("--hub_token", "hf_secret"))


@pytest.mark.parametrize("step", range(21))
def test_steps_with_a_class_loss(step):
    labels = LabelOptions(classifier_start_step=5, classifier_every=4)
    assert labels.is_due(step) == (step in (5, 9, 13, 17))
    assert labels.steps_before(step) == sum(labels.is_due(other) for other in range(step))
    without = LabelOptions(classifier_loss_weight=0.0)
    assert not without.is_due(step) and without.steps_before(step) == 0


def test_a_script_says_what_is_wrong_without_a_traceback(tmp_path, fork_server):
    """As a program; tests/test_scripts.py asks all of them in this process."""
    script = SCRIPTS / "train_joint.py"
    line = [sys.executable, script, "--dataset_dir", "nowhere", "--output_dir", tmp_path / "run"]
    assert fork_server.start(line, tmp_path / "log").wait() == 1
    said = (tmp_path / "log").read_text()
    assert said.startswith("mediffusion train joint: `dataset_dir` must be a folder") and said.count("\n") == 1, said
    assert not (tmp_path / "run").exists()
