"""Train the autoencoder, the joint model, or the outside classifier that judges counterfactuals.

    accelerate launch -m mediffusion_diffusers train joint --preset phantom-demo --dataset_dir data/phantom \
        --labelled_split data/phantom-10pct.json --output_dir runs/joint

To resume, run the same command with `--resume_from_checkpoint latest`.
"""

from __future__ import annotations

from typing import Any

from ..training.autoencoder.config import AutoencoderConfig
from ..training.joint.config import JointConfig
from ..training.oracle.config import OracleConfig
from ..training.presets import AUTOENCODER_PRESETS, JOINT_PRESETS
from .command import Command
from .results import say_result


_RESUME = "To resume, run the same command with `--resume_from_checkpoint latest`."


def _autoencoder(*groups: Any) -> None:
    """Train the autoencoder whose latents the joint U-Net works on; the groups are those of `AutoencoderConfig`."""
    from ..training.autoencoder.task import train_autoencoder

    train_autoencoder(AutoencoderConfig(*groups))


def _joint(*groups: Any) -> None:
    """Train one U-Net to denoise and to classify; the groups are those of `JointConfig`."""
    from ..training.joint.task import train_joint

    train_joint(JointConfig(*groups))


def _oracle(*groups: Any) -> None:
    """Train the outside classifier and print its figures; the groups are those of `OracleConfig`."""
    from ..training.oracle.task import train_oracle

    say_result(train_oracle(OracleConfig(*groups)))


COMMANDS = {
    "autoencoder": Command(
        AutoencoderConfig.parser(
            AUTOENCODER_PRESETS,
            f"Train the autoencoder whose latents the joint U-Net works on (paper App. C).\n\n{_RESUME}",
        ),
        _autoencoder,
    ),
    "joint": Command(
        JointConfig.parser(
            JOINT_PRESETS,
            "Train one U-Net to denoise and to classify: L = L_diff + w * L_class (paper Sec. 3.3).\n\n" + _RESUME,
        ),
        _joint,
    ),
    "oracle": Command(
        OracleConfig.parser(
            {},
            "Train the outside classifier that judges counterfactuals. Give it other patients than the model that it "
            f"will judge.\n\n{_RESUME}",
        ),
        _oracle,
    ),
}
