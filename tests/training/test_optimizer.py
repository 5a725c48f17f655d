import torch
from support.components import tiny_unet

from mediffusion_diffusers.training.run.optimizer import build_adamw, count_parameters, joint_parameter_groups


def test_every_parameter_is_in_exactly_one_group_and_moves():
    unet = tiny_unet()
    groups = joint_parameter_groups(unet, 1e-3, 1e-4)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(parameter) for parameter in unet.parameters()}
    assert {id(parameter) for parameter in groups[1]["params"]} == {id(p) for p in unet.classifier.parameters()}

    before = [parameter.detach().clone() for parameter in unet.parameters()]
    optimizer = build_adamw(groups)
    for parameter in unet.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert not any(torch.equal(old, new) for old, new in zip(before, unet.parameters(), strict=True))


def test_the_head_has_its_own_rate():
    groups = joint_parameter_groups(tiny_unet(), 1e-3, 1e-4)
    assert [(group["name"], group["lr"], group["initial_lr"]) for group in groups] == [
        ("unet", 1e-3, 1e-3),
        ("classifier", 1e-4, 1e-4),
    ]


def test_parameters_are_counted():
    assert count_parameters(torch.nn.Linear(3, 2)) == 8
