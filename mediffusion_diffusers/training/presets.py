"""One row per experiment: argument values of the training scripts, overridden by what the command line says."""

from __future__ import annotations

from typing import Any


# App. D. The text says Adam; its authors ran AdamW, and the class loss on every 4th step only.
_PAPER_JOINT: dict[str, Any] = {
    "resolution": 256,
    "unet_config": "paper",
    "train_batch_size": 64,
    "labelled_batch_size": 32,
    "learning_rate": 5e-5,
    "lr_scheduler": "constant_with_warmup",
    "classifier_start_step": 5000,
    "classifier_every": 4,
    "random_crop_scale": (0.8, 1.0),
    "use_ema": True,
    "ema_decay": 0.9999,
    "validation_steps": 5000,
    "checkpointing_steps": 5000,
    "checkpoints_total_limit": 2,
    "logging_steps": 50,
    "counterfactual_strength": 0.3,
}


def _chestxray14(classifier_loss_weight: float, classifier_learning_rate: float) -> dict[str, Any]:
    return {
        **_PAPER_JOINT,
        "max_train_steps": 200_000,
        "classifier_loss_weight": classifier_loss_weight,
        "classifier_learning_rate": classifier_learning_rate,
        "horizontal_flip": False,  # mirrors the heart; the authors do flip
    }


JOINT_PRESETS: dict[str, dict[str, Any]] = {
    # App. D, ChestX-ray14 by share of labelled images.
    "chestxray14-2pct": _chestxray14(5e-5, 1e-5),
    "chestxray14-5pct": _chestxray14(1.5e-4, 2e-5),
    "chestxray14-10pct": _chestxray14(1e-3, 5e-5),
    "chestxray14-15pct": _chestxray14(1e-3, 5e-5),
    "chestxray14-20pct": _chestxray14(1e-3, 5e-5),
    "chestxray14-100pct": _chestxray14(1e-3, 5e-5),
    # App. D, ISIC 2019: one setting for all shares.
    "isic2019": {
        **_PAPER_JOINT,
        "max_train_steps": 20_000,
        "classifier_loss_weight": 1e-3,
        "horizontal_flip": True,
    },
    # Chest phantoms of 32x32 pixels: diffusion first, then joint with a cosine of its own; minutes on two cores.
    "phantom-demo": {
        "resolution": 32,
        "vae": "space_to_depth",
        "block_out_channels": (32, 64, 64),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        "attention_head_dim": 16,
        "norm_num_groups": 8,
        "classifier_pool_size": 4,
        "classifier_hidden_size": 128,
        "classifier_dropout": 0.1,
        "train_batch_size": 32,
        "labelled_batch_size": 32,
        "max_train_steps": 2800,
        "learning_rate": 1e-3,
        "lr_scheduler": "cosine",
        "lr_warmup_steps": 50,
        "classifier_start_step": 2200,
        "lr_restart_at_classifier_start": True,
        "classifier_loss_weight": 3.0,
        "classifier_noise_prob": 0.3,
        "ema_decay": 0.998,
        "horizontal_flip": True,
        "random_shift": 2,
        "intensity_jitter": 0.1,
        "validation_steps": 200,
        "sample_steps": 1400,
        "checkpointing_steps": 700,
        "checkpoints_total_limit": 1,
        "counterfactual_strength": 0.3,
        "counterfactual_guidance_scale": 20.0,
        "counterfactual_num_inference_steps": 10,
    },
}

AUTOENCODER_PRESETS: dict[str, dict[str, Any]] = {
    # App. C without its adversarial and perceptual terms.
    "chestxray14-autoencoder": {
        "resolution": 256,
        "max_train_steps": 300_000,
        "train_batch_size": 64,
        "learning_rate": 4.5e-6,
        "block_out_channels": (128, 256, 512, 512),
        "layers_per_block": 2,
        "latent_channels": 4,
        "random_crop_scale": (0.8, 1.0),
        "validation_steps": 5000,
        "checkpointing_steps": 5000,
        "checkpoints_total_limit": 2,
    },
}
AUTOENCODER_PRESETS["isic2019-autoencoder"] = {
    **AUTOENCODER_PRESETS["chestxray14-autoencoder"],
    "horizontal_flip": True,
}
