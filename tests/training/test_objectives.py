import math

import pytest
import torch
from support.components import MULTI_LABEL, SINGLE_LABEL, tiny_scheduler, tiny_unet

from mediffusion_diffusers.training.classification import classification_loss, count_known
from mediffusion_diffusers.training.joint.objectives import (
    DiffusionBatch,
    JointObjective,
    LabelledBatch,
    diffusion_loss,
    diffusion_target,
)
from mediffusion_diffusers.training.run.optimizer import build_adamw, joint_parameter_groups


NAN = float("nan")


def diffusion_batch(size=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    latents, noise = torch.randn(2, size, 4, 8, 8, generator=generator)
    return DiffusionBatch(latents, noise, torch.randint(0, 1000, (size,), generator=generator), size)


def labelled_batch(labels):
    labels = torch.tensor(labels)
    latents = torch.randn(len(labels), 4, 8, 8, generator=torch.Generator().manual_seed(1))
    return LabelledBatch(latents, torch.zeros(len(labels), dtype=torch.long), labels)


def test_multi_label_loss_is_a_loop_over_known_entries():
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[1, 0, NAN], [NAN, NAN, NAN], [0, 0, 1], [1, NAN, 0], [NAN, 1, NAN]])
    terms = []
    for row in range(5):
        for column in range(3):
            label, logit = labels[row, column].item(), logits[row, column].item()
            if not math.isnan(label):
                probability = 1 / (1 + math.exp(-logit))
                terms.append(-math.log(probability if label == 1 else 1 - probability))
    assert len(terms) == count_known(labels, MULTI_LABEL) == 8
    assert classification_loss(logits, labels, MULTI_LABEL).item() == pytest.approx(sum(terms) / 8, rel=1e-6)


def test_single_label_loss_is_a_loop_over_known_rows():
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[0, 1, 0], [NAN, NAN, NAN], [1, 0, 0], [0, 0, 1]])
    terms = []
    for row, target in ((0, 1), (2, 0), (3, 2)):
        exponentials = [math.exp(value) for value in logits[row].tolist()]
        terms.append(-math.log(exponentials[target] / sum(exponentials)))
    assert count_known(labels, SINGLE_LABEL) == 3
    assert classification_loss(logits, labels, SINGLE_LABEL).item() == pytest.approx(sum(terms) / 3, rel=1e-6)


@pytest.mark.parametrize("problem_type", [MULTI_LABEL, SINGLE_LABEL])
def test_nothing_known_gives_zero_with_a_graph(problem_type):
    logits = torch.randn(2, 3, requires_grad=True)
    loss = classification_loss(logits, torch.full((2, 3), NAN), problem_type)
    loss.backward()
    assert loss.item() == 0 and torch.equal(logits.grad, torch.zeros(2, 3))


@pytest.mark.parametrize("problem_type", [MULTI_LABEL, SINGLE_LABEL])
def test_unknown_labels_get_no_gradient(problem_type):
    logits = torch.randn(3, 3, requires_grad=True)
    labels = torch.tensor([[0.0, 1, 0], [NAN, NAN, NAN], [1, 0, 0]])
    classification_loss(logits, labels, problem_type).backward()
    assert torch.equal(logits.grad[1], torch.zeros(3)) and (logits.grad[[0, 2]] != 0).all()


@pytest.mark.parametrize("problem_type", [MULTI_LABEL, SINGLE_LABEL])
def test_losses_of_slices_add_up(problem_type):
    logits = torch.randn(5, 3)
    labels = torch.eye(3)[[0, 2, 1, 0, 2]]
    labels[1] = NAN
    known = count_known(labels, problem_type)
    parts = [classification_loss(logits[own], labels[own], problem_type, known) for own in ([0, 1, 2], [3, 4])]
    assert torch.allclose(sum(parts), classification_loss(logits, labels, problem_type))
    output, target = torch.randn(2, 5, 4, 8, 8)
    parts = [diffusion_loss(output[own], target[own], 5) for own in ([0, 1, 2], [3, 4])]
    assert torch.allclose(sum(parts), torch.nn.functional.mse_loss(output, target))


def test_wrong_labels_are_refused():
    with pytest.raises(ValueError, match=r"`labels` must have the logits' shape \(2, 3\), but got \(2,\)"):
        classification_loss(torch.zeros(2, 3), torch.zeros(2), MULTI_LABEL)
    with pytest.raises(ValueError, match="but got 'regression'"):
        classification_loss(torch.zeros(2, 3), torch.zeros(2, 3), "regression")


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_the_target_recovers_the_latents(prediction_type):
    """With the target as the model's output, the scheduler's own step finds z_0."""
    scheduler = tiny_scheduler("ddpm", prediction_type=prediction_type)
    batch = diffusion_batch(1)
    timestep = torch.tensor([300])
    noisy = scheduler.add_noise(batch.latents, batch.noise, timestep)
    target = diffusion_target(batch.latents, batch.noise, timestep, scheduler)
    found = scheduler.step(target, 300, noisy).pred_original_sample
    assert torch.allclose(found, batch.latents, atol=1e-4)


def test_the_loss_is_the_weighted_sum():
    objective = JointObjective(tiny_unet(), tiny_scheduler("ddpm"), 0.3, 2.0).eval()
    both = objective(diffusion_batch(), labelled_batch([[1.0, 0, NAN], [0, 1, 1]]))
    assert both["loss"].item() == pytest.approx(
        2.0 * both["diffusion_loss"].item() + 0.3 * both["classification_loss"].item(), rel=1e-6
    )
    alone = objective(diffusion_batch())
    assert torch.equal(alone["diffusion_loss"], both["diffusion_loss"]) and "classification_loss" not in alone
    with pytest.raises(ValueError, match="At least one of `diffusion`, `labelled`"):
        objective()


def test_a_diffusion_step_leaves_the_head_alone():
    """Not a gradient, not weight decay, not the optimizer's moments of earlier steps may move it."""
    unet = tiny_unet(classifier_dropout=0.5).train()
    objective = JointObjective(unet, tiny_scheduler("ddpm"), 1.0)
    optimizer = build_adamw(joint_parameter_groups(unet, 1e-2, 1e-2), weight_decay=0.1)

    def train_step(labelled):
        before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
        objective(diffusion_batch(), labelled)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        return {name for name, tensor in unet.state_dict().items() if not torch.equal(tensor, before[name])}

    head = {name for name in unet.state_dict() if name.startswith("classifier.")}
    everything = set(unet.state_dict())
    assert train_step(labelled_batch([[1.0, 0, 0], [0, 1, 1]])) == everything
    assert train_step(None) == everything - head


def test_the_diffusion_loss_does_not_depend_on_the_head():
    unet = tiny_unet()
    objective = JointObjective(unet, tiny_scheduler("ddpm"))
    before = objective(diffusion_batch())["diffusion_loss"]
    for parameter in unet.classifier.parameters():
        torch.nn.init.constant_(parameter, NAN)
    assert torch.equal(objective(diffusion_batch())["diffusion_loss"], before)


def test_a_classification_step_leaves_the_decoder_alone():
    unet = tiny_unet()
    JointObjective(unet, tiny_scheduler("ddpm"))(None, labelled_batch([[1.0, 0, 0]]))["loss"].backward()
    without = {name for name, parameter in unet.named_parameters() if parameter.grad is None}
    assert without == {
        name for name, _ in unet.named_parameters() if name.startswith(("up_blocks", "conv_norm_out", "conv_out"))
    }
