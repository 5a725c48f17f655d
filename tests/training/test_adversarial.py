import pytest
import torch
from support.components import tiny_vae

from mediffusion_diffusers.training.autoencoder.adversarial import (
    DiscriminatorObjective,
    adaptive_weight,
    frozen_logits,
    generator_loss,
    hinge_loss,
)
from mediffusion_diffusers.training.autoencoder.objective import AutoencoderObjective
from mediffusion_diffusers.training.autoencoder.patch_discriminator import PatchDiscriminator, smallest_image


def discriminator(channels=1, num_layers=1):
    torch.manual_seed(0)
    return PatchDiscriminator(channels, 8, num_layers)


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(3, 1, 16, 16, generator=generator) * 2 - 1, torch.randn(3, 4, 8, 8, generator=generator)


def test_the_hinge_loss_is_a_loop():
    real, fake = torch.randn(2, 3, 1, 2, 2, generator=torch.Generator().manual_seed(0)).mul(2).unbind()
    total = 0.0
    for image in range(3):
        for row in range(2):
            for column in range(2):
                total += max(0.0, 1 - real[image, 0, row, column].item())
                total += max(0.0, 1 + fake[image, 0, row, column].item())
    assert hinge_loss(real, fake).item() == pytest.approx(total / 2 / 12, rel=1e-6)
    assert generator_loss(fake).item() == pytest.approx(-fake.mean().item(), rel=1e-6)
    parts = [hinge_loss(real[own], fake[own], 3) for own in ([0], [1, 2])]
    assert sum(parts).item() == pytest.approx(hinge_loss(real, fake).item(), rel=1e-6)


def test_a_sure_discriminator_has_no_loss():
    assert hinge_loss(torch.full((2, 1, 2, 2), 1.5), torch.full((2, 1, 2, 2), -1.5)) == 0


def test_the_adaptive_weight_is_its_formula_by_hand():
    """A last layer y = w x, L_rec = sum (y - 1)^2, L_adv = -3 y: gradients 2 (w x - 1) x and -3 x."""
    w = torch.nn.Parameter(torch.tensor([2.0, 1.0]))
    x = torch.tensor([1.0, 0.5])
    y = w * x
    weight = adaptive_weight((y - 1).square().sum(), (-3 * y).sum(), w)
    pull = ((2 * (2.0 - 1) * 1.0) ** 2 + (2 * (0.5 - 1) * 0.5) ** 2) ** 0.5
    push = (3.0**2 + 1.5**2) ** 0.5
    assert weight.item() == pytest.approx(pull / (push + 1e-4), rel=1e-6) and not weight.requires_grad
    assert w.grad is None
    y.sum().backward()  # the graph is still there
    assert adaptive_weight((w * x).sum(), (0 * w).sum(), w) == 1e4


def test_the_adaptive_weight_is_that_of_the_whole_batch():
    """Summing the gradients of slices, as over processes, gives the weight of the batch they are slices of."""
    w = torch.nn.Parameter(torch.randn(4, generator=torch.Generator().manual_seed(0)))
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))

    def losses(rows):
        return ((rows @ w) ** 2).sum() / 6, -(rows @ w).tanh().sum() / 6

    gradients = []
    for rows in (x[:2], x[2:]):
        adaptive_weight(*losses(rows), w, lambda pulls: gradients.append(pulls) or pulls)
    whole = adaptive_weight(*losses(x), w)
    assert torch.allclose(adaptive_weight(*losses(x[:2]), w, lambda pulls: sum(gradients)), whole, rtol=1e-5)


def test_the_adversary_pulls_as_the_reconstruction_does():
    """Without the KL term, the two parts' gradients at the last layer have norms in the ratio `disc_weight`."""
    adversary = discriminator()
    objective = AutoencoderObjective(tiny_vae("kl"), 0.0, discriminator=adversary, discriminator_weight=0.25)
    images, noise = batch()
    weight = objective.vae.decoder.conv_out.weight
    (whole,) = torch.autograd.grad(objective(images, noise)["loss"], weight)
    losses = objective(images, noise, is_adversarial=False)
    assert "generator_loss" not in losses
    (pull,) = torch.autograd.grad(losses["loss"], weight)
    assert (whole - pull).norm().item() == pytest.approx(0.25 * pull.norm().item(), rel=1e-2)
    assert not {id(parameter) for parameter in adversary.parameters()} & {id(own) for own in objective.parameters()}


def test_the_autoencoders_step_leaves_the_discriminator_alone():
    adversary = discriminator()
    objective = AutoencoderObjective(tiny_vae("kl"), discriminator=adversary)
    objective(*batch())["loss"].backward()
    assert all(parameter.grad is None for parameter in adversary.parameters())
    assert all(parameter.requires_grad for parameter in adversary.parameters())
    images = batch()[0].requires_grad_()
    assert torch.equal(frozen_logits(adversary, images), adversary(images))
    frozen_logits(adversary, images).sum().backward()
    assert images.grad.abs().sum() > 0


def test_the_discriminators_step_leaves_the_autoencoder_alone():
    objective = DiscriminatorObjective(discriminator())
    images = batch()[0]
    reconstructions = images.mul(0.5).requires_grad_()
    losses = objective(images, reconstructions)
    losses["loss"].backward()
    assert reconstructions.grad is None
    assert all(parameter.grad is not None for parameter in objective.parameters())
    assert losses["fake_logits"].item() == pytest.approx(objective.discriminator(reconstructions).mean().item(), 1e-5)


@pytest.mark.parametrize(("num_layers", "side"), [(1, 16), (2, 34), (3, 70)])
def test_a_logit_sees_a_patch(num_layers, side):
    """GroupNorm lets a patch feel the whole image's statistics; without it three layers see 70x70 pixels."""
    model = PatchDiscriminator(1, 4, num_layers)
    model.layers = torch.nn.Sequential(*[each for each in model.layers if not isinstance(each, torch.nn.GroupNorm)])
    image = torch.randn(1, 1, 160, 160, requires_grad=True)
    logits = model(image)
    middle = logits.shape[-1] // 2
    logits[0, 0, middle, middle].backward()
    touched = image.grad[0, 0].abs().sum(0).nonzero().flatten()
    assert touched[-1] - touched[0] + 1 == side


def test_an_images_logits_do_not_depend_on_the_others():
    images = batch()[0]
    model = discriminator(num_layers=2)
    assert torch.allclose(model(images)[1], model(images[1:2])[0], atol=1e-6)


@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_the_smallest_image(num_layers):
    side = smallest_image(num_layers)
    model = PatchDiscriminator(3, 4, num_layers)
    assert model(torch.zeros(1, 3, side, side)).shape == (1, 1, 1, 1)
    with pytest.raises((RuntimeError, ValueError)):
        model(torch.zeros(1, 3, side - 2**num_layers, side - 2**num_layers))
