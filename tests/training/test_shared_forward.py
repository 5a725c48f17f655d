import torch
from support.components import TINY_UNET, tiny_scheduler, tiny_unet

from mediffusion_diffusers.training.joint.objectives import DiffusionBatch, JointObjective, LabelledBatch
from mediffusion_diffusers.training.joint.shared_forward import UNetInput, can_share, predict


def batches(num_images=4, num_labelled=3):
    generator = torch.Generator().manual_seed(3)
    shape = (TINY_UNET["in_channels"], 8, 8)
    latents, noise = (torch.randn(num_images, *shape, generator=generator) for _ in range(2))
    labels = torch.tensor([[1.0, 0.0, torch.nan]]).repeat(num_labelled, 1)
    return (
        DiffusionBatch(latents, noise, torch.randint(0, 1000, (num_images,), generator=generator), num_images),
        LabelledBatch(
            torch.randn(num_labelled, *shape, generator=generator), torch.arange(num_labelled) * 100, labels
        ),
    )


def losses_and_gradients(batch, labelled, **options):
    unet = tiny_unet(classifier_dropout=0.0).train()
    objective = JointObjective(unet, tiny_scheduler("ddpm"), classification_loss_weight=0.7, **options)
    losses = objective(batch, labelled, labelled)  # the same rows as labels and as pseudo-labels
    losses["loss"].backward()
    return losses, {name: parameter.grad for name, parameter in unet.named_parameters()}


def assert_close(one, other, **tolerances):
    losses, gradients = one
    other_losses, other_gradients = other
    assert losses.keys() == other_losses.keys()
    for name, value in losses.items():
        torch.testing.assert_close(value, other_losses[name], **tolerances)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, other_gradients[name], **tolerances, msg=name)


def test_one_pass_gives_the_losses_and_gradients_of_two():
    shared = losses_and_gradients(*batches())
    apart = losses_and_gradients(*batches(), share_forward=False)
    assert_close(shared, apart, rtol=1e-4, atol=1e-6)
    assert shared[0]["diffusion_loss"] > 0 and shared[0]["pseudo_label_loss"] > 0


def test_the_encoder_runs_once():
    calls = []
    unet = tiny_unet().train()
    unet.conv_in.register_forward_hook(lambda module, args, output: calls.append(len(output)))
    objective = JointObjective(unet, tiny_scheduler("ddpm"))
    objective(*batches(4, 3))
    assert calls == [7]
    objective.share_forward = False
    objective(*batches(4, 3))
    assert calls == [7, 4, 3]


def test_the_head_reads_the_labelled_rows_alone_and_the_decoder_the_others():
    unet = tiny_unet().train()
    rows = []
    unet.classifier.register_forward_hook(lambda module, args, output: rows.append(("head", len(output))))
    unet.conv_out.register_forward_hook(lambda module, args, output: rows.append(("decoder", len(output))))
    diffusion, labelled = batches(4, 3)
    denoised = UNetInput(diffusion.latents, diffusion.timesteps)
    classified = UNetInput(labelled.latents, labelled.timesteps)
    sample, logits = predict(unet, denoised, classified)
    assert rows == [("decoder", 4), ("head", 3)]
    gradients = torch.autograd.grad(sample.sum(), list(unet.classifier.parameters()), allow_unused=True)
    assert all(gradient is None or not gradient.any() for gradient in gradients)
    other = UNetInput(labelled.latents + 1, labelled.timesteps)
    torch.testing.assert_close(predict(unet, denoised, other)[0], sample, rtol=1e-5, atol=1e-6)
    assert logits.shape == (3, 3)


def test_what_does_not_stack_is_not_shared():
    diffusion, labelled = batches()
    denoised = UNetInput(diffusion.latents, diffusion.timesteps)
    smaller = UNetInput(labelled.latents[..., :4, :4], labelled.timesteps)
    assert not can_share(denoised, None) and not can_share(None, smaller) and not can_share(denoised, smaller)
    sample, logits = predict(tiny_unet(), denoised, smaller)
    assert sample.shape == denoised.latents.shape and len(logits) == len(smaller.latents)


def test_the_compiled_pass_gives_the_same():
    compiled = losses_and_gradients(*batches(), compile_backend="eager")
    assert_close(compiled, losses_and_gradients(*batches()), rtol=1e-4, atol=1e-5)


def test_checkpointed_gradients_are_the_same():
    def run(is_checkpointed):
        unet = tiny_unet(classifier_dropout=0.0).train()
        if is_checkpointed:
            unet.enable_gradient_checkpointing()
        passes = []
        unet.down_blocks[0].resnets[0].conv1.register_forward_hook(lambda *args: passes.append(1))
        losses = JointObjective(unet, tiny_scheduler("ddpm"))(*batches())
        losses["loss"].backward()
        return len(passes), (losses, {name: parameter.grad for name, parameter in unet.named_parameters()})

    (num_plain, plain), (num_checkpointed, checkpointed) = run(False), run(True)
    assert (num_plain, num_checkpointed) == (1, 2)  # the second pass is the backward's
    assert_close(checkpointed, plain, rtol=1e-5, atol=1e-7)


def test_under_bfloat16_the_losses_stay_float32_and_close():
    with torch.autocast("cpu", torch.bfloat16):
        losses, gradients = losses_and_gradients(*batches())
    expected, _ = losses_and_gradients(*batches())
    for name, value in losses.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected[name], rtol=3e-2, atol=1e-2)
    assert all(gradient.dtype == torch.float32 for gradient in gradients.values())
