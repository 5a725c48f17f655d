"""The joint model: diffusion and classification with one U-Net (paper Sec. 3.3)."""
