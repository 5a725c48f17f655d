import os
import subprocess
import sys

import pytest

from mediffusion_diffusers.output_folder import LOCK_FILE, claimed_folder, try_writing, writable_folder


def test_a_folder_is_made_and_left_empty(tmp_path):
    assert try_writing(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_what_is_no_folder_is_said(tmp_path):
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match=r"`results` must be a folder that can be written to, .* is a file"):
            try_writing(folder, "results")


def test_a_folder_without_room_or_permission_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(ValueError, match=r"`output_dir` must .*: No space left on device. Name another"):
        try_writing(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_second_run_is_refused_and_a_killed_one_lets_go(tmp_path):
    code = "import sys, time\nfrom mediffusion_diffusers.output_folder import claimed_folder\n"
    code += "with claimed_folder(sys.argv[1]):\n    print('held', flush=True)\n    time.sleep(60)\n"
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(ValueError, match=r"`output_dir` .* is in use by another run"), claimed_folder(tmp_path):
        pass
    holder.kill()
    holder.wait()
    with claimed_folder(tmp_path) as folder:
        assert folder == tmp_path


@pytest.mark.parametrize("folder", [writable_folder, claimed_folder])
def test_a_run_that_fails_at_once_leaves_no_empty_folder(tmp_path, folder):
    with pytest.raises(ValueError, match="mistyped"), folder(tmp_path / "new" / "results"):
        raise ValueError("mistyped")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="mistyped"), folder(tmp_path):  # what was there before stays
        raise ValueError("mistyped")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="late"), folder(tmp_path / "new" / "results") as place:
        (place / "half").write_text("kept")
        raise ValueError("late")
    assert (tmp_path / "new" / "results" / "half").read_text() == "kept"


def test_a_refused_run_takes_nothing_from_the_one_that_holds_the_folder(tmp_path):
    with claimed_folder(tmp_path / "results") as place:
        with pytest.raises(ValueError, match="in use by another run"), claimed_folder(place):
            pass
        assert [path.name for path in place.iterdir()] == [LOCK_FILE]
