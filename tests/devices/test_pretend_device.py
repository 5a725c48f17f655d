"""The pretend accelerator obeys CUDA's rules, computes as the CPU does, and leaves nothing behind."""

import copy

import pytest
import torch
from support.pretend_device import pretend_device

from mediffusion_diffusers.device import pick_device


ON, CPU = "pretend", "cpu"
GENERATOR = torch.Generator


def here(*shape):
    return torch.zeros(shape, device=ON)


class TestRules:
    @pytest.mark.parametrize(
        "mix",
        [
            lambda: here(3) + torch.ones(3),
            lambda: here(1, 3) @ torch.ones(3, 1),
            lambda: torch.cat([here(3), torch.ones(3)]),
            lambda: torch.stack([here(), torch.ones(())]),
            lambda: torch.ones(3)[here(1).long()],
            lambda: here(3).index_select(0, torch.tensor([1])),
            lambda: torch.where(torch.tensor([True]), here(1), here(1)),
            lambda: torch.nn.Linear(2, 2)(here(1, 2)),
            lambda: torch.randn(2, device=ON, generator=torch.Generator()),
            lambda: torch.randn(2, generator=torch.Generator(ON)),
            lambda: here(2).normal_(generator=torch.Generator()),
        ],
    )
    def test_two_devices_do_not_mix(self, pretend, mix):
        with pytest.raises(RuntimeError, match="Expected"):
            mix()

    def test_numbers_and_indices_may_come_from_the_cpu(self, pretend):
        assert (here(3) + torch.tensor(2.0)).tolist() == [2, 2, 2]
        assert torch.where(here(2) == 0, torch.tensor(1.0), here(2)).tolist() == [1, 1]
        assert torch.arange(4, device=ON)[torch.tensor([3, 1])].tolist() == [3, 1]
        values = here(3)
        values[torch.tensor([1])] = torch.tensor(5.0)
        assert values.tolist() == [0, 5, 0]

    def test_numpy_needs_a_copy(self, pretend):
        with pytest.raises(TypeError, match="copy it to the host"):
            here(2).numpy()
        assert here(2).cpu().numpy().tolist() == [0, 0]

    def test_exists_while_it_is_used(self):
        for _ in range(2):
            with pretend_device().active():
                assert pick_device("pretend") == torch.device("pretend")
            with pytest.raises(ValueError, match="`device`"):
                pick_device("pretend")
            assert torch.Generator is GENERATOR and torch.ones(2).sum().item() == 2


class TestNumbers:
    def test_of_a_generator(self, pretend):
        numbers = torch.randn(4, device=ON, generator=torch.Generator(ON).manual_seed(3))
        assert torch.equal(numbers.cpu(), torch.randn(4, generator=torch.Generator().manual_seed(3)))
        assert isinstance(torch.Generator(ON), torch.Generator) and torch.Generator(ON).device.type == "pretend"

    def test_of_views_changed_in_place(self, pretend):
        values = here(2, 3)
        row = values[1]
        row += 1
        values[:, 0].copy_(torch.tensor([4.0, 5.0]))
        assert values.tolist() == [[4, 0, 0], [5, 1, 1]]

    def test_of_a_training_step(self, pretend):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.GroupNorm(1, 2), torch.nn.Flatten())
        models = {CPU: model, ON: copy.deepcopy(model).to(ON)}
        for device, each in models.items():
            optimizer = torch.optim.AdamW(each.parameters(), lr=0.1)
            for _ in range(2):
                each(torch.linspace(-1, 1, 32).reshape(2, 1, 4, 4).to(device)).square().sum().backward()
                torch.nn.utils.clip_grad_norm_(each.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
        for one, other in zip(models[CPU].parameters(), copy.deepcopy(models[ON]).parameters(), strict=True):
            assert isinstance(other, torch.nn.Parameter) and other.device.type == "pretend"
            torch.testing.assert_close(other.cpu(), one)


class TestWaits:
    @pytest.mark.parametrize(
        "act, kind",
        [
            (lambda x: x.sum().item(), "read"),
            (lambda x: bool((x > 0).any()), "read"),
            (lambda x: torch.equal(x, x), "read"),
            (lambda x: x.tolist(), "download"),
            (lambda x: x.cpu(), "download"),
            (lambda x: torch.zeros(3).copy_(x), "download"),
            (lambda x: torch.zeros(3).to(ON), "upload"),
            (lambda x: torch.tensor([1.0], device=ON), "upload"),
            (lambda x: x.nonzero(), "shape"),
            (lambda x: x[x > 0], "shape"),
            (lambda x: x.unique(), "shape"),
        ],
    )
    def test_are_noted_with_their_place(self, pretend, act, kind):
        values = here(3)
        act(values)
        assert [wait.kind for wait in pretend.waits] == [kind]
        assert pretend.waits[0].place.startswith("test_pretend_device.py:")

    @pytest.mark.parametrize(
        "act",
        [
            lambda x: x.to("cpu", non_blocking=True),
            lambda x: torch.zeros(3).to(ON, non_blocking=True),
            lambda x: x + torch.tensor(1.0),
            lambda x: torch.full((3,), 2.0, device=ON),
            lambda x: torch.where(x > 0, x, 0),
            lambda x: x[1:].sum(),
        ],
    )
    def test_are_not_noted_where_there_are_none(self, pretend, act):
        act(here(3))
        assert pretend.waits == []
