"""The page is served to this machine alone, sends nothing to anybody, and leaves nothing behind."""

import builtins
import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from mediffusion_diffusers import app


def test_without_gradio_the_error_says_what_to_install(pipe, monkeypatch):
    imported = builtins.__import__

    def without_gradio(name, *rest, **named):
        if name.split(".")[0] == "gradio":
            raise ImportError("No module named 'gradio'")
        return imported(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without_gradio)
    for name in [name for name in sys.modules if name.startswith("mediffusion_diffusers.app.layout")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ImportError, match=r'pip install "mediffusion-diffusers\[app\]"'):
        app.build(pipe)


def test_the_package_is_imported_without_gradio():
    code = "import sys, mediffusion_diffusers.app; print('gradio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_arguments_are_checked_before_gradio_is_asked(pipe):
    with pytest.raises(ValueError, match="`num_parallel` must be a whole number"):
        app.build(pipe, num_parallel=0)


@pytest.fixture(scope="module")
def served(pipe):
    """Address and upload folder of a page, and its configuration."""
    pytest.importorskip("gradio")
    with app.serve(pipe, server_port=None) as address, urllib.request.urlopen(f"{address}config") as answer:
        yield address, Path(os.environ["GRADIO_TEMP_DIR"]), json.load(answer)


def test_the_page_listens_at_loopback(served):
    assert served[0].startswith("http://127.0.0.1:")


def test_nothing_is_sent_and_no_run_is_recorded(served):
    config = served[2]
    assert (config["analytics_enabled"], config["run_history"]) == (False, False)


def test_no_click_is_an_interface_for_programs(served):
    clicks = [click for click in served[2]["dependencies"] if click["backend_fn"]]
    assert clicks and {click["api_visibility"] for click in clicks} == {"private"}


def test_fonts_are_the_systems_own(served):
    with urllib.request.urlopen(f"{served[0]}theme.css") as answer:
        assert "@font-face" not in answer.read().decode()
    assert not any("font" in address for address in served[2]["stylesheets"])


def test_nothing_stays_behind(pipe):
    pytest.importorskip("gradio")
    before = os.environ.get("GRADIO_TEMP_DIR")
    with app.serve(pipe):
        folder = Path(os.environ["GRADIO_TEMP_DIR"])
        assert folder.stat().st_mode & 0o077 == 0
    assert not folder.exists() and os.environ.get("GRADIO_TEMP_DIR") == before


def test_a_signal_ends_the_page_and_clears_its_folder(tmp_path, pipe):
    pytest.importorskip("gradio")
    pipe.save_pretrained(tmp_path / "model")
    code = "import sys; from mediffusion_diffusers import app; app.launch(sys.argv[1])"
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / "model"], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert "The page is at http://127.0.0.1" in process.stdout.readline()
    assert list(tmp_path.glob("mediffusion-app-*"))
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    assert list(tmp_path.glob("mediffusion-app-*")) == []
