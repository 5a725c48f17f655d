import torch
from support.components import tiny_unet

from mediffusion_diffusers.training.run.ema import EMAWeights, validation_weights


def move(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def test_the_average_covers_trunk_and_head_and_follows_its_formula():
    unet = tiny_unet()
    ema = EMAWeights(unet, decay=0.6)
    expected = weights(unet)
    for step in range(1, 12):
        move(unet, step)
        ema.step()
        # diffusers' warm-up: (1 + n) / (10 + n) with n steps done, and the weights themselves at first.
        decay = min(0.6, step / (9 + step)) if step > 1 else 0.0
        expected = {name: expected[name] * decay + now * (1 - decay) for name, now in weights(unet).items()}
    average = ema.state_tensors()
    assert average.keys() == expected.keys() and any(name.startswith("classifier.") for name in average)
    for name, tensor in average.items():
        assert torch.allclose(tensor, expected[name], atol=1e-5), name


def test_the_average_is_a_model_of_its_own():
    """Nothing is swapped: the model in training keeps its weights and its mode."""
    unet = tiny_unet().train()
    ema = EMAWeights(unet, decay=0.9)
    for seed in range(3):
        move(unet, seed)
        ema.step()
    own = weights(unet)
    with validation_weights(unet, ema) as averaged:
        assert averaged is ema.averaged() and not averaged.training and unet.training
        assert not any(parameter.requires_grad for parameter in averaged.parameters())
        assert all(torch.equal(tensor, ema.state_tensors()[name]) for name, tensor in weights(averaged).items())
        assert all(torch.equal(tensor, own[name]) for name, tensor in weights(unet).items())
    with validation_weights(unet, None) as same:
        assert same is unet and not unet.training
    assert unet.training


def test_buffers_are_those_of_the_model():
    model = torch.nn.BatchNorm2d(2)
    ema = EMAWeights(model)
    model(torch.randn(4, 2, 3, 3))
    assert torch.equal(ema.averaged().running_mean, model.running_mean)
    assert ema.averaged().num_batches_tracked == 1


def test_an_average_that_begins_anew_is_the_model():
    unet = tiny_unet()
    ema = EMAWeights(unet, decay=0.9)
    ema.step()
    move(unet, 0)
    ema.begin_anew()
    assert all(torch.equal(tensor, ema.state_tensors()[name]) for name, tensor in weights(unet).items())


def test_a_restarted_warmup_forgets():
    unet = tiny_unet()
    ema = EMAWeights(unet, decay=0.999)
    for _ in range(20):
        ema.step()
    move(unet, 0)
    ema.restart_warmup()
    ema.step()
    assert all(torch.equal(tensor, ema.state_tensors()[name]) for name, tensor in weights(unet).items())
