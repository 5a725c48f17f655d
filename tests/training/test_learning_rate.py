import pytest
import torch
from diffusers.optimization import get_scheduler
from transformers.optimization import get_wsd_schedule

from mediffusion_diffusers.training.run.learning_rate import LR_SCHEDULERS, lr_factor, set_learning_rate


@pytest.mark.parametrize("name", LR_SCHEDULERS)
@pytest.mark.parametrize("num_warmup_steps", [0, 4])
def test_factors_are_those_of_diffusers_and_transformers(name, num_warmup_steps):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    if name == "warmup_stable_decay":  # of transformers alone
        scheduler = get_wsd_schedule(optimizer, num_warmup_steps, 4, num_training_steps=16, decay_type="linear")
    else:
        scheduler = get_scheduler(name, optimizer, num_warmup_steps=num_warmup_steps, num_training_steps=16)
    for step in range(16):
        assert lr_factor(step, name, num_warmup_steps, 16) == pytest.approx(scheduler.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        scheduler.step()


def test_groups_keep_their_ratio():
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD(
        [{"params": [p], "lr": lr, "initial_lr": lr} for p, lr in zip(parameters, (2.0, 0.5), strict=True)]
    )
    for factor in (0.5, 1.0, 0.25):
        set_learning_rate(optimizer, factor)
        assert [group["lr"] for group in optimizer.param_groups] == [2.0 * factor, 0.5 * factor]


def test_an_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match="`lr_scheduler` must be one of"):
        lr_factor(0, "polynomial")
