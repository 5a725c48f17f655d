import json
import shutil

import pytest
import torch
from support.components import tiny_unet

from mediffusion_diffusers.training.run.checkpoints import (
    find_checkpoint,
    list_checkpoints,
    load_checkpoint,
    module_tensors,
    optimizer_tensors,
    restore_module,
    restore_optimizer,
    save_checkpoint,
)
from mediffusion_diffusers.training.run.optimizer import build_adamw, joint_parameter_groups


def build(seed):
    unet = tiny_unet(seed=seed).to(memory_format=torch.channels_last)
    return unet, build_adamw(joint_parameter_groups(unet, 1e-2, 1e-3))


def train(unet, optimizer, steps, first=0, head_from=2):
    for step in range(first, first + steps):
        generator = torch.Generator().manual_seed(step)
        for name, parameter in unet.named_parameters():
            gradient = torch.randn(parameter.shape, generator=generator)
            parameter.grad = None if name.startswith("classifier.") and step < head_from else gradient
        optimizer.step()


def save(folder, step, unet, optimizer, **kwargs):
    tensors = {"unet": module_tensors(unet), "optimizer": optimizer_tensors(optimizer, unet)}
    return save_checkpoint(folder, step, tensors, {"window": [0.1, 2]}, **kwargs)


@pytest.mark.parametrize("saved_at", [0, 1, 4])
def test_a_restored_optimizer_goes_on_bit_for_bit(tmp_path, saved_at):
    """Also when the head, or everything, has no optimizer state yet."""
    unet, optimizer = build(seed=0)
    train(unet, optimizer, saved_at)
    path = save(tmp_path, saved_at, unet, optimizer)
    train(unet, optimizer, 3, saved_at)

    other, other_optimizer = build(seed=1)
    train(other, other_optimizer, 1)
    checkpoint = load_checkpoint(path)
    assert checkpoint.step == saved_at and checkpoint.state["window"] == [0.1, 2]
    restore_module(other, checkpoint.tensors["unet"], path)
    restore_optimizer(other_optimizer, other, checkpoint.tensors.get("optimizer", {}))
    train(other, other_optimizer, 3, saved_at)
    for name, tensor in unet.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
    moments, other_moments = optimizer_tensors(optimizer, unet), optimizer_tensors(other_optimizer, other)
    assert moments.keys() == other_moments.keys()
    assert all(torch.equal(tensor, other_moments[name]) for name, tensor in moments.items())


def test_the_layout_of_the_moments_is_kept(tmp_path):
    unet, optimizer = build(seed=0)
    train(unet, optimizer, 3)
    strides = {name: tensor.stride() for name, tensor in optimizer_tensors(optimizer, unet).items()}
    checkpoint = load_checkpoint(save(tmp_path, 3, unet, optimizer))
    restore_optimizer(optimizer, unet, checkpoint.tensors["optimizer"])
    assert {name: tensor.stride() for name, tensor in optimizer_tensors(optimizer, unet).items()} == strides


def test_there_is_no_pickle(tmp_path):
    unet, optimizer = build(seed=0)
    train(unet, optimizer, 3)
    path = save(tmp_path, 3, unet, optimizer)
    assert {file.suffix for file in path.iterdir()} == {".safetensors", ".json"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint-3"]


def test_a_damaged_checkpoint_is_refused_by_name_and_the_one_before_it_taken(tmp_path):
    unet, optimizer = build(seed=0)
    train(unet, optimizer, 1)
    good = save(tmp_path / "run", 5, unet, optimizer)
    newest = save(tmp_path / "run", 10, unet, optimizer)
    assert find_checkpoint(tmp_path / "run", "latest") == (newest, [])
    for file in sorted(path.name for path in newest.iterdir()):
        for damage in ("truncate", "delete"):
            run = tmp_path / f"{file}-{damage}"
            shutil.copytree(tmp_path / "run", run)
            damaged = run / newest.name / file
            if damage == "truncate":
                damaged.write_bytes(damaged.read_bytes()[:-1])
            else:
                damaged.unlink()
            path, passed_over = find_checkpoint(run, "latest")
            assert path == run / good.name and len(passed_over) == 1 and file in passed_over[0]
            with pytest.raises(ValueError, match=f"checkpoint-10 cannot be used: {file}"):
                find_checkpoint(run, "checkpoint-10")
            with pytest.raises(ValueError, match=f"checkpoint-10 cannot be used: {file}"):
                load_checkpoint(run / newest.name)


def test_an_unfinished_folder_is_no_checkpoint(tmp_path):
    (tmp_path / ".checkpoint-7.partial").mkdir()
    (tmp_path / "checkpoint-old").mkdir()
    assert list_checkpoints(tmp_path) == [] and find_checkpoint(tmp_path, "latest") == (None, [])
    assert find_checkpoint(tmp_path / "nowhere", "latest") == (None, [])
    with pytest.raises(ValueError, match="'latest' or a checkpoint folder, but there is no 'checkpoint-7'"):
        find_checkpoint(tmp_path, "checkpoint-7")


def test_the_oldest_go_first_and_by_number(tmp_path):
    unet, optimizer = build(seed=0)
    for step in (9, 10, 100):
        save(tmp_path, step, unet, optimizer, total_limit=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-10", "checkpoint-100"]


def test_a_checkpoint_can_be_written_again(tmp_path):
    unet, optimizer = build(seed=0)
    save(tmp_path, 3, unet, optimizer)
    train(unet, optimizer, 1)
    path = save(tmp_path, 3, unet, optimizer)
    restored = load_checkpoint(path).tensors["unet"]
    assert all(torch.equal(tensor, restored[name]) for name, tensor in unet.state_dict().items())


def test_a_failed_write_leaves_the_last_good_checkpoint(tmp_path):
    unet, optimizer = build(seed=0)
    good = save(tmp_path, 3, unet, optimizer, total_limit=1)
    with pytest.raises(TypeError):
        save_checkpoint(tmp_path, 6, {"unet": module_tensors(unet)}, {"not JSON": object()}, total_limit=1)
    assert find_checkpoint(tmp_path, "latest") == (good, [])


def test_another_model_is_refused(tmp_path):
    unet, optimizer = build(seed=0)
    checkpoint = load_checkpoint(save(tmp_path, 1, unet, optimizer))
    other = tiny_unet(classifier_hidden_size=4)
    with pytest.raises(ValueError, match=r"belongs to another model: .*classifier"):
        restore_module(other, checkpoint.tensors["unet"], checkpoint.path)


def test_the_manifest_is_readable(tmp_path):
    unet, optimizer = build(seed=0)
    path = save(tmp_path, 3, unet, optimizer)
    manifest = json.loads((path / "manifest.json").read_text())
    assert (
        manifest["step"] == 3 and manifest["files"]["unet.safetensors"] == (path / "unet.safetensors").stat().st_size
    )
