"""Networks: the joint U-Net and a lossless stand-in for an autoencoder."""

from .autoencoder_space_to_depth import SpaceToDepthAutoencoder
from .joint_unet_2d import JointUNet2DModel, JointUNet2DOutput


__all__ = ["JointUNet2DModel", "JointUNet2DOutput", "SpaceToDepthAutoencoder"]
