import torch
from diffusers import DDIMScheduler

from mediffusion_diffusers import JointUNet2DModel, MediffusionCounterfactualPipeline, SpaceToDepthAutoencoder


def tiny_pipeline() -> MediffusionCounterfactualPipeline:
    """A pipeline of tiny real components for 16x16 grey images with three findings."""
    torch.manual_seed(0)
    unet = JointUNet2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
        norm_num_groups=4,
        id2label={0: "Cardiomegaly", 1: "Effusion", 2: "Mass"},
        num_labels=3,
        classifier_hidden_size=16,
        guidance_defaults={"strength": 0.2, "guidance_scale": 5.0, "num_inference_steps": 2},
    )
    vae = SpaceToDepthAutoencoder(in_channels=1, block_size=2, scaling_factor=1.7)
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False)
    return MediffusionCounterfactualPipeline(vae=vae, unet=unet, scheduler=scheduler)
