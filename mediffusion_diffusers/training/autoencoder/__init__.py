"""The autoencoder whose latents the joint model works on (paper App. C)."""
