import pytest
import torch

from mediffusion_diffusers.controls import (
    ascend_log_probability,
    change_by,
    plain_gradient_control,
    random_noise_control,
)


@pytest.fixture
def images():
    return torch.rand(6, 1, 16, 16, generator=torch.Generator().manual_seed(0))


def _l1(images, originals):
    return (images - originals).abs().flatten(1).mean(1)


def test_controls_change_as_much_as_asked(images):
    l1 = torch.tensor([0.0, 0.001, 0.01, 0.03, 0.1, 0.2])
    weights = torch.randn(1, 16, 16)
    noised = random_noise_control(images, l1, torch.Generator().manual_seed(1))
    pushed = plain_gradient_control(images, l1, lambda pixels: (weights * pixels).sum((1, 2, 3)))
    for changed in (noised, pushed):
        assert changed.min() >= 0 and changed.max() <= 1
        assert torch.allclose(_l1(changed, images), l1, atol=1e-4)


def test_noise_is_seeded(images):
    l1 = torch.full((6,), 0.02)
    first, again, other = (random_noise_control(images, l1, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_plain_gradient_climbs(images):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 1))

    def log_probability(pixels):
        return torch.nn.functional.logsigmoid(model(pixels))[:, 0]

    pushed = plain_gradient_control(images, torch.full((6,), 0.03), log_probability)
    noised = random_noise_control(images, torch.full((6,), 0.03), torch.Generator().manual_seed(0))
    assert (log_probability(pushed) > log_probability(images)).all()
    assert (log_probability(pushed) > log_probability(noised)).all()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_images_do_not_influence_one_another(images):
    def log_probability(pixels):
        return pixels.square().sum((1, 2, 3))

    l1 = torch.full((6,), 0.03)
    together = plain_gradient_control(images, l1, log_probability)
    alone = plain_gradient_control(images[2:3], l1[2:3], log_probability)
    assert torch.allclose(together[2:3], alone, atol=1e-6)


def test_what_cannot_be_reached_is_as_large_as_possible():
    white = torch.ones(1, 1, 4, 4)
    assert torch.equal(change_by(white, torch.ones_like(white), torch.tensor([0.1])), white)
    assert torch.equal(change_by(white, torch.zeros_like(white), torch.tensor([0.1])), white)


def test_ascent_climbs_by_the_asked_length(images):
    weights = torch.randn(1, 16, 16, generator=torch.Generator().manual_seed(2))
    size = torch.linspace(0.0, 2.0, 6)
    changed = ascend_log_probability(images, size, lambda latents: (weights * latents).sum((1, 2, 3)))
    # The gradient of a linear function is constant: all steps go the same way.
    direction = weights / weights.norm()
    assert torch.allclose(changed - images, size.view(-1, 1, 1, 1) * direction, atol=1e-5)


def test_ascent_of_a_constant_stays(images):
    still = ascend_log_probability(images, torch.ones(6), lambda latents: 0 * latents.sum((1, 2, 3)))
    assert torch.equal(still, images)


def test_the_ascent_stays_within_a_mask():
    latents = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(2, 1, 6, 6)
    mask[..., 2:4] = 1
    changed = ascend_log_probability(latents, torch.ones(2), lambda z: -z.square().sum((1, 2, 3)), mask=mask)
    outside = mask.expand_as(latents) == 0
    assert torch.equal(changed[outside], latents[outside])
    assert (changed[~outside] != latents[~outside]).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_an_ascent_in_half_precision_goes_where_the_full_one_goes(dtype):
    """Of a target that is already certain: 1 - g is far below what half precision holds."""
    latents = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    weights = torch.randn(3, 6, 6, generator=torch.Generator().manual_seed(1)).to(dtype)

    def log_probability(z):
        return torch.nn.functional.logsigmoid((0.01 * weights.to(z) * z).sum((1, 2, 3)).float() + 25.0)

    half, full = (ascend_log_probability(z, torch.ones(2), log_probability) for z in (latents, latents.float()))
    assert half.dtype == dtype
    moved, expected = (half.float() - latents.float()).flatten(), (full - latents.float()).flatten()
    assert torch.cosine_similarity(moved, expected, dim=0) > 0.99
    assert moved.norm() == pytest.approx(float(expected.norm()), rel=0.05)
