import pytest

from mediffusion_diffusers.commands.boundary import run_command


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
    assert "a fault of the software" in said and "KeyError: 'unet' (test_boundary.py, line 8)" in said
    monkeypatch.setenv("MEDIFFUSION_TRACEBACK", "1")
    with pytest.raises(SystemExit):
        run_command(raising(KeyError("unet")), "train.py")
    assert "Traceback" in capsys.readouterr().err
