import hashlib
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


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def link_to_itself(path):
    path.unlink()
    path.symlink_to(path)


def put_a_folder_there(path):
    path.unlink()
    path.mkdir()


DAMAGES = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "emptied": lambda path: path.write_bytes(b""),
    "a flipped bit": flip_a_bit,
    "a zeroed header": lambda path: path.write_bytes(bytes(64) + path.read_bytes()[64:]),
    "other JSON": lambda path: path.write_text("[1, 2]"),
    "JSON of another shape": lambda path: path.write_text('{"format_version": 2, "files": {"state.json": 3}}'),
    "JSON beyond all numbers": lambda path: path.write_text(
        '{"format_version": 2, "files": {"state.json": {"bytes": 1e999, "sha256": ""}}}'
    ),
    "a link to itself": link_to_itself,
    "deep JSON": lambda path: path.write_text("[" * 100_000),
    "no text": lambda path: path.write_bytes(b"\xff\xfe" * 40),
    "missing": lambda path: path.unlink(),
    "a folder": put_a_folder_there,
}


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory):
    unet, optimizer = build(seed=0)
    train(unet, optimizer, 1)
    folder = tmp_path_factory.mktemp("run")
    for step in (5, 10):
        save(folder, step, unet, optimizer)
    return folder


@pytest.mark.parametrize("file", ["manifest.json", "optimizer.safetensors", "state.json", "unet.safetensors"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_refused_by_name_and_the_one_before_it_taken(two_checkpoints, tmp_path, file, damage):
    run = tmp_path / "run"
    shutil.copytree(two_checkpoints, run)
    assert find_checkpoint(run, "latest") == (run / "checkpoint-10", [])
    DAMAGES[damage](run / "checkpoint-10" / file)
    path, passed_over = find_checkpoint(run, "latest")
    assert path == run / "checkpoint-5" and len(passed_over) == 1 and file in passed_over[0]
    with pytest.raises(ValueError, match=f"checkpoint-10 cannot be used: {file}"):
        find_checkpoint(run, "checkpoint-10")


def test_a_file_in_the_place_of_a_checkpoint_is_passed_over_and_replaced(two_checkpoints, tmp_path):
    shutil.copytree(two_checkpoints / "checkpoint-5", tmp_path / "checkpoint-5")
    (tmp_path / "checkpoint-10").write_text("no folder")
    assert find_checkpoint(tmp_path, "latest")[0] == tmp_path / "checkpoint-5"
    assert load_checkpoint(save(tmp_path, 10, *build(seed=0))).step == 10


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(tmp_path, number):
    unet, optimizer = build(seed=0)
    good = save(tmp_path, 5, unet, optimizer)
    with torch.no_grad():
        unet.conv_in.weight[0, 0, 0, 0] = number
    save(tmp_path, 10, unet, optimizer)
    path, passed_over = find_checkpoint(tmp_path, "latest")
    assert path == good and "'conv_in.weight' in unet.safetensors holds NaN or infinite numbers" in passed_over[0]


def without_hashes(path):
    """Turn a checkpoint into one of the format before hashes."""
    manifest = json.loads((path / "manifest.json").read_text())
    sizes = {name: facts["bytes"] for name, facts in manifest["files"].items()}
    (path / "manifest.json").write_text(json.dumps({**manifest, "format_version": 1, "files": sizes}))


def test_a_checkpoint_without_hashes_loads_and_its_damage_is_found_as_far_as_it_shows(two_checkpoints, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(two_checkpoints, run)
    without_hashes(run / "checkpoint-10")
    before, after = load_checkpoint(two_checkpoints / "checkpoint-10"), load_checkpoint(run / "checkpoint-10")
    assert before.state == after.state and before.tensors.keys() == after.tensors.keys()
    weights = run / "checkpoint-10" / "unet.safetensors"
    weights.write_bytes(bytes(64) + weights.read_bytes()[64:])
    assert find_checkpoint(run, "latest")[0] == run / "checkpoint-5"


def test_only_files_of_the_manifest_are_read(two_checkpoints, tmp_path):
    shutil.copytree(two_checkpoints / "checkpoint-5", tmp_path / "checkpoint-5")
    (tmp_path / "checkpoint-5" / "stranger.safetensors").write_bytes(b"anything")
    assert "stranger" not in load_checkpoint(tmp_path / "checkpoint-5").tensors
    manifest = tmp_path / "checkpoint-5" / "manifest.json"
    manifest.write_text(manifest.read_text().replace("unet.safetensors", "../../unet.safetensors"))
    with pytest.raises(ValueError, match=r"manifest\.json is damaged"):
        load_checkpoint(tmp_path / "checkpoint-5")


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
    weights = (path / "unet.safetensors").read_bytes()
    assert manifest["step"] == 3 and manifest["files"].keys() == {
        *("unet.safetensors", "optimizer.safetensors", "state.json"),
    }
    assert manifest["files"]["unet.safetensors"] == {
        "bytes": len(weights),
        "sha256": hashlib.sha256(weights).hexdigest(),
    }
