"""One row per experiment: configurations of the training scripts, overridden by what the command line says.

The labelled share is no argument: `mediffusion prepare split` draws it once, and `--labelled_split` names the file.
"""

from __future__ import annotations

import math

from .autoencoder.config import AutoencoderConfig
from .joint.config import JointConfig


# App. D. The text says Adam; its authors ran AdamW, and the class loss on every 4th step only.
_PAPER_JOINT = JointConfig().with_options(
    resolution=256,
    unet_config="paper",
    train_batch_size=64,
    labelled_batch_size=32,
    learning_rate=5e-5,
    lr_scheduler="constant_with_warmup",
    classifier_start_step=5000,
    classifier_every=4,
    random_crop_scale=[0.8, 1.0],
    use_ema=True,
    ema_decay=0.9999,
    validation_steps=5000,
    checkpointing_steps=5000,
    checkpoints_total_limit=2,
    logging_steps=50,
)


def _chestxray14(classifier_loss_weight: float, classifier_learning_rate: float) -> JointConfig:
    return _PAPER_JOINT.with_options(
        max_train_steps=200_000,
        classifier_loss_weight=classifier_loss_weight,
        classifier_learning_rate=classifier_learning_rate,
        horizontal_flip=False,  # mirrors the heart; the authors do flip
    )


# App. E for Table 3, "UNet w/o diffusion": Adam at 1e-4, batches of 64, 100 epochs of the labelled images.
_NUM_CHESTXRAY14_TRAINING_IMAGES = 86_524  # official train_val list
_NUM_ABLATION_EPOCHS, _ABLATION_BATCH = 100, 64


def _without_diffusion(share: int) -> JointConfig:
    steps_per_epoch = math.ceil(_NUM_CHESTXRAY14_TRAINING_IMAGES * share / 100 / _ABLATION_BATCH)
    return _PAPER_JOINT.with_options(
        max_train_steps=_NUM_ABLATION_EPOCHS * steps_per_epoch,
        diffusion_loss_weight=0.0,
        classifier_loss_weight=1.0,
        classifier_start_step=0,
        classifier_every=1,
        learning_rate=1e-4,
        labelled_batch_size=_ABLATION_BATCH,
        validation_steps=10 * steps_per_epoch,
        checkpointing_steps=10 * steps_per_epoch,
        horizontal_flip=False,
    )


# App. D, ISIC 2019: one setting for all shares.
_ISIC2019 = _PAPER_JOINT.with_options(
    max_train_steps=20_000,
    classifier_loss_weight=1e-3,
    horizontal_flip=True,
    counterfactual_views="shifts_and_flips",
)

# Small runs on real images, for a desktop: not the paper's.
_SMALL_JOINT = JointConfig().with_options(
    block_out_channels=[32, 64, 64],
    layers_per_block=1,
    down_block_types=["DownBlock2D", "DownBlock2D", "AttnDownBlock2D"],
    attention_head_dim=16,
    norm_num_groups=8,
    classifier_pool_size=4,
    classifier_hidden_size=128,
    classifier_dropout=0.3,
    train_batch_size=32,
    labelled_batch_size=32,
    learning_rate=1e-3,
    lr_scheduler="cosine",
    lr_warmup_steps=50,
    classifier_start_step=1800,
    lr_restart_at_classifier_start=True,
    classifier_loss_weight=3.0,
    classifier_noise_prob=0.3,
    ema_decay=0.998,
    random_shift=2,
    intensity_jitter=0.1,
    validation_steps=200,
    checkpointing_steps=600,
    checkpoints_total_limit=1,
)

# What few labels on real images need: diffusion of the clean latents, weighted by 8 abar_t; a short joint stage at the
# whole learning rate, classes drawn by the root of their number; then the model's own soft answers of the whole pool.
_FEW_LABELS = _SMALL_JOINT.with_options(
    prediction_type="sample",
    diffusion_loss_weight=8.0,
    snr_gamma=1.0,
    snr_weighting="soft_min",
    lr_scheduler="warmup_stable_decay",
    adam_beta2=0.99,
    adam_weight_decay=0.05,
    classifier_pool_type="avg_std",
    classifier_noise_prob=0.0,
    square_root_labelled_sampling=True,
    random_crop_scale=[0.85, 1.0],
    classifier_start_step=1750,
    consolidation_start_step=2000,
    max_train_steps=2400,
)

JOINT_PRESETS: dict[str, JointConfig] = {
    # App. D, ChestX-ray14 by share of labelled images: Tables 1, 3, 8 and 10 (15 %: named in App. D only).
    "chestxray14-2pct": _chestxray14(5e-5, 1e-5),
    "chestxray14-5pct": _chestxray14(1.5e-4, 2e-5),
    "chestxray14-10pct": _chestxray14(1e-3, 5e-5),
    "chestxray14-15pct": _chestxray14(1e-3, 5e-5),
    "chestxray14-20pct": _chestxray14(1e-3, 5e-5),
    "chestxray14-100pct": _chestxray14(1e-3, 5e-5),
    # App. D, ISIC 2019: Tables 2 and 9.
    **{f"isic2019-{share}pct": _ISIC2019 for share in (2, 5, 10, 20)},
    # App. E, the same U-Net without the diffusion loss: Tables 3 and 10.
    **{f"chestxray14-{share}pct-no-diffusion": _without_diffusion(share) for share in (2, 5, 10, 20, 100)},
    # Small runs; benchmarks/results says what came of them. The last needs `vae_path`, of a small autoencoder.
    "pneumoniamnist-small": _FEW_LABELS.with_options(resolution=32, vae="space_to_depth"),
    "isic2019-small": _FEW_LABELS.with_options(
        resolution=48,
        vae="space_to_depth",
        vae_block_size=4,
        block_out_channels=[32, 64, 128],
        attention_head_dim=32,
        classifier_pool_size=1,  # a lesion may lie anywhere in its picture, and at any angle
        classifier_hidden_size=0,
        classifier_norm_type="batch_norm",
        diffusion_loss_weight=2.0,
        stratified_timesteps=True,
        joint_diffusion_loss_weight=0.0,
        # Long denoising: a linear probe gains 1.7 points of AUROC over 1,750 steps.
        classifier_start_step=10_000,
        linear_probe_first=True,
        joint_learning_rate=3e-4,
        consolidation_start_step=10_250,
        consolidation_learning_rate=1e-3,
        decoder_start_step=10_650,
        max_train_steps=10_950,
        classifier_loss_weight=1.0,
        classifier_lr_scheduler="cosine",
        classifier_warmup_steps=20,
        lr_warmup_steps=100,
        adam_weight_decay=0.01,
        horizontal_flip=True,
        random_rotation=180.0,
        random_crop_scale=[0.6, 1.0],
        random_shift=3,
        intensity_jitter=0.0,
        classifier_color_jitter=0.2,
        counterfactual_views="shifts_and_flips",
    ),
    "chestxray14-small": _FEW_LABELS.with_options(resolution=64),
    # Chest phantoms of 32x32 pixels: diffusion first, then joint with a cosine of its own, then slowly the model's own
    # soft answers of all images, so that it knows noised ones and forgets nothing; minutes on two cores.
    "phantom-demo": _SMALL_JOINT.with_options(
        resolution=32,
        vae="space_to_depth",
        classifier_dropout=0.1,
        max_train_steps=3800,
        classifier_start_step=2200,
        consolidation_start_step=2800,
        consolidation_learning_rate=4e-4,
        consolidation_num_views=8,
        horizontal_flip=True,
        sample_steps=1400,
        checkpointing_steps=700,
        counterfactual_views="shifts_and_flips",  # as it was trained
    ),
    # The checkpoint of `mediffusion_diffusers.examples`: chest phantoms of 64x64 pixels, latents of 16x16.
    "phantom": _SMALL_JOINT.with_options(
        resolution=64,
        vae="space_to_depth",
        vae_block_size=4,
        block_out_channels=[32, 64, 128],
        classifier_dropout=0.1,
        prediction_type="sample",
        diffusion_loss_weight=8.0,
        snr_gamma=1.0,
        snr_weighting="soft_min",
        lr_scheduler="warmup_stable_decay",
        max_train_steps=10_000,
        classifier_start_step=8000,
        consolidation_start_step=9500,
        random_shift=3,
        validation_steps=500,
        checkpointing_steps=500,
        sample_steps=2000,
        logging_steps=50,
    ),
}

# Without the last stage, and in a third of the time, for `make demo`.
JOINT_PRESETS["phantom-short"] = JOINT_PRESETS["phantom-demo"].with_options(
    max_train_steps=1300,
    classifier_start_step=800,
    consolidation_start_step=None,
    sample_steps=1300,
    validation_steps=325,
    checkpointing_steps=325,
)

# App. C. Its "perceptual loss from step 50,000 with weight 0.5" is `disc_start` and `disc_weight` of Rombach et al.,
# whose perceptual loss takes part from the beginning with weight 1. Theirs is LPIPS, which needs torchvision:
# `--perceptual lpips`.
_PAPER_AUTOENCODER_TRAINING = AutoencoderConfig().with_options(
    resolution=256,
    max_train_steps=300_000,
    train_batch_size=64,
    learning_rate=4.5e-6,
    block_out_channels=[128, 256, 512, 512],
    layers_per_block=2,
    latent_channels=4,
    kl_weight=1e-6,
    perceptual="microsoft/resnet-50",
    perceptual_weight=1.0,
    perceptual_start=0,
    disc_start=50_001,
    disc_weight=0.5,
    disc_num_layers=3,
    disc_channels=64,
    random_crop_scale=[0.8, 1.0],
    validation_steps=5000,
    checkpointing_steps=5000,
    checkpoints_total_limit=2,
)

_SMALL_AUTOENCODER = AutoencoderConfig().with_options(
    resolution=64,
    block_out_channels=[16, 32, 64],
    layers_per_block=1,
    norm_num_groups=8,
    latent_channels=4,
    train_batch_size=16,
    learning_rate=1e-3,
    lr_scheduler="cosine",
    lr_warmup_steps=100,
    ema_decay=0.998,
    validation_steps=400,
    checkpointing_steps=400,
    checkpoints_total_limit=1,
)

AUTOENCODER_PRESETS: dict[str, AutoencoderConfig] = {
    # App. C: grey and colour images.
    "chestxray14-autoencoder": _PAPER_AUTOENCODER_TRAINING.with_options(horizontal_flip=False),
    "isic2019-autoencoder": _PAPER_AUTOENCODER_TRAINING.with_options(horizontal_flip=True),
    # Small ones, L1 and KL alone.
    "chestxray14-small-autoencoder": _SMALL_AUTOENCODER.with_options(max_train_steps=1200),
    "isic2019-small-autoencoder": _SMALL_AUTOENCODER.with_options(max_train_steps=2000, horizontal_flip=True),
}
