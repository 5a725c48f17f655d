import pytest
import torch
from diffusers import AutoencoderKL

from mediffusion_diffusers import SpaceToDepthAutoencoder
from mediffusion_diffusers.models.presets import PAPER_AUTOENCODER, PAPER_UNET


@pytest.mark.parametrize(
    "channels, block_size, size", [(1, 2, (32, 32)), (3, 2, (8, 12)), (1, 4, (8, 8)), (1, 1, (5, 7))]
)
def test_loses_nothing(channels, block_size, size):
    autoencoder = SpaceToDepthAutoencoder(channels, channels, block_size)
    images = torch.randn(2, channels, *size)
    posterior = autoencoder.encode(images).latent_dist
    latents = posterior.mode()
    assert latents.shape == (2, channels * block_size**2, size[0] // block_size, size[1] // block_size)
    assert latents.shape[1] == autoencoder.config.latent_channels
    assert torch.equal(posterior.sample(torch.Generator()), latents)
    assert torch.equal(posterior.kl(), torch.zeros(2))
    assert torch.equal(autoencoder.decode(latents).sample, images)
    assert torch.equal(autoencoder.decode(latents, return_dict=False)[0], images)
    assert torch.equal(autoencoder(images).sample, images)


def test_a_latent_sees_one_block():
    autoencoder = SpaceToDepthAutoencoder(block_size=2)
    images = torch.zeros(1, 1, 4, 4)
    images[..., :2, 2:] = 1
    latents = autoencoder.encode(images, return_dict=False)[0].mode()
    assert latents[0, :, 0, 1].eq(1).all() and latents.sum() == 4


def test_saves_and_loads(tmp_path):
    autoencoder = SpaceToDepthAutoencoder(3, 3, block_size=4, scaling_factor=1.7, sample_size=32)
    autoencoder.save_pretrained(tmp_path)
    loaded = SpaceToDepthAutoencoder.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert loaded.dtype == torch.bfloat16
    assert {key: value for key, value in loaded.config.items() if key[0] != "_"} == {
        key: value for key, value in autoencoder.config.items() if key[0] != "_"
    }
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_mistakes():
    with pytest.raises(ValueError, match="multiples of 2"):
        SpaceToDepthAutoencoder().encode(torch.zeros(1, 1, 5, 4))
    with pytest.raises(ValueError, match="must be equal"):
        SpaceToDepthAutoencoder(in_channels=1, out_channels=3)
    with pytest.raises(ValueError, match="must be 4"):
        SpaceToDepthAutoencoder(latent_channels=3)


def test_paper_autoencoder_feeds_the_paper_unet():
    with torch.device("meta"):
        autoencoder = AutoencoderKL(**PAPER_AUTOENCODER, in_channels=1, out_channels=1)
        latents = autoencoder.encode(torch.zeros(1, 1, 256, 256)).latent_dist.mode()
    assert latents.shape == (1, PAPER_UNET["in_channels"], PAPER_UNET["sample_size"], PAPER_UNET["sample_size"])
