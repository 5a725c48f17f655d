from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file


FOLDER = Path(__file__).parents[2] / "training" / "accelerate_configs"
FILES = {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}


def test_the_four_ways_to_launch_are_there():
    assert FILES.keys() == {"ddp", "deepspeed_zero2", "fsdp2", "multi_node"}


@pytest.mark.parametrize("name", sorted(FILES))
def test_accelerate_reads_the_file(name):
    config = load_config_from_file(str(FILES[name]))
    kinds = {"ddp": "MULTI_GPU", "multi_node": "MULTI_GPU", "fsdp2": "FSDP", "deepspeed_zero2": "DEEPSPEED"}
    assert config.distributed_type.value == kinds[name]
    assert config.num_processes >= 2 and config.num_machines == (2 if name == "multi_node" else 1)
    assert name != "fsdp2" or config.fsdp_config["fsdp_version"] == 2
    assert name != "deepspeed_zero2" or config.deepspeed_config["zero_stage"] == 2


@pytest.mark.parametrize("name", sorted(FILES))
def test_the_head_says_what_was_run_and_what_was_not(name):
    head = [line for line in FILES[name].read_text().splitlines() if line.startswith("#")]
    assert any(line.startswith("# What was run:") for line in head)
    assert any(line.startswith("# What was not:") for line in head)
