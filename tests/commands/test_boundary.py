import json
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mediffusion_diffusers.commands.boundary import explain, run_command


def raising(error):
    def main():
        raise error

    return main


@pytest.mark.parametrize(
    "main, code, said",
    [
        (lambda: None, 0, ""),
        (lambda: 3, 3, ""),
        (raising(ValueError("`seed` must be\n a number.")), 1, "train.py: `seed` must be a number.\n"),
        (raising(FloatingPointError("`loss` became nan")), 1, "train.py: `loss` became nan\n"),
        (raising(KeyboardInterrupt()), 130, "train.py: stopped by Ctrl-C.\n"),
        (raising(ValueError("token hf_" + "a" * 34)), 1, "train.py: token ***\n"),
    ],
)
def test_a_command_ends_with_a_code_and_one_line(main, code, said, capsys):
    with pytest.raises(SystemExit) as ended:
        run_command(main, "train.py")
    assert ended.value.code == code
    assert capsys.readouterr() == ("", said)


def test_our_own_faults_are_called_so(capsys, monkeypatch):
    with pytest.raises(SystemExit) as ended:
        run_command(raising(KeyError("unet")), "train.py")
    said = capsys.readouterr().err
    assert ended.value.code == 1 and said.count("\n") == 1 and "Traceback" not in said
    assert "a fault of the software" in said and "KeyError: 'unet' (test_boundary.py, line 14)" in said
    monkeypatch.setenv("MEDIFFUSION_TRACEBACK", "1")
    with pytest.raises(SystemExit):
        run_command(raising(KeyError("unet")), "train.py")
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("read", [load_file, np.load, zipfile.ZipFile, lambda path: json.loads(path.read_text())])
def test_a_damaged_file_is_the_users_and_not_a_fault_of_the_software(tmp_path, read):
    path = tmp_path / "file.npz"
    path.write_bytes(b"PK\x03\x04 and no more of it")
    with pytest.raises(Exception) as raised:
        read(path)
    assert "fault of the software" not in explain(raised.value)


def test_a_lack_of_memory_says_what_to_do():
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60, dtype=torch.uint8)
    for error in (raised.value, MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")):
        assert "not enough memory" in explain(error) and "smaller batch" in explain(error)
