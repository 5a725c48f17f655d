"""The smallest real training: 16x16 phantoms, a U-Net of a few thousand parameters, a handful of steps."""

from mediffusion_diffusers.training.autoencoder.config import AutoencoderConfig
from mediffusion_diffusers.training.joint.config import JointConfig
from mediffusion_diffusers.training.oracle.config import OracleConfig
from mediffusion_diffusers.training.presets import AUTOENCODER_PRESETS, JOINT_PRESETS


TINY_JOINT = (
    *("--resolution", "16", "--vae", "space_to_depth", "--block_out_channels", "8", "16"),
    *("--layers_per_block", "1", "--down_block_types", "DownBlock2D", "AttnDownBlock2D"),
    *("--norm_num_groups", "4", "--attention_head_dim", "8", "--classifier_hidden_size", "8"),
    *("--train_batch_size", "4", "--labelled_batch_size", "3", "--max_train_steps", "6"),
    *("--learning_rate", "1e-3", "--ema_decay", "0.9", "--logging_steps", "2", "--validation_steps", "3"),
    *("--checkpointing_steps", "3", "--num_sample_images", "2", "--sample_inference_steps", "2"),
    *("--classifier_noise_prob", "0.5", "--random_shift", "1"),
)
TINY_AUTOENCODER = (
    *("--resolution", "16", "--block_out_channels", "8", "8", "--layers_per_block", "1", "--norm_num_groups", "4"),
    *("--train_batch_size", "4", "--max_train_steps", "4", "--learning_rate", "1e-3", "--ema_decay", "0.9"),
    *("--logging_steps", "2", "--validation_steps", "2", "--checkpointing_steps", "2", "--num_panel_images", "2"),
)


def joint_config(*arguments):
    """Parse a command line of train_joint.py; numbers and paths need not be strings."""
    return JointConfig.parse([str(each) for each in arguments], JOINT_PRESETS)


def autoencoder_config(*arguments):
    """Parse a command line of train_autoencoder.py."""
    return AutoencoderConfig.parse([str(each) for each in arguments], AUTOENCODER_PRESETS)


def oracle_config(*arguments):
    """Parse a command line of train_oracle.py."""
    return OracleConfig.parse([str(each) for each in arguments], {})
