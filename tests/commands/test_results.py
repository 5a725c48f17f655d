"""What hours of work have found is never lost, and a fault of the software stays one."""

import pytest

from mediffusion_diffusers.commands.results import write_results


def test_results_without_a_place_are_kept_elsewhere(tmp_path):
    def write(place):
        if place == tmp_path:
            raise OSError("No space left on device.")
        (place / "figures.json").write_text("1")

    with pytest.raises(OSError, match=r"No space left on device\. They are kept in '.*mediffusion-results-"):
        write_results(write, tmp_path)


def test_our_own_fault_is_not_called_the_folders(tmp_path, capsys):
    def write(place):
        raise TypeError("unsupported operand")

    with pytest.raises(TypeError, match="unsupported operand"):
        write_results(write, tmp_path, {"auroc": 0.9})
    printed = capsys.readouterr()
    assert '"auroc": 0.9' in printed.out and "could not all be written" in printed.err
