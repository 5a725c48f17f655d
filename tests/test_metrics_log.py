import json

import pytest

from mediffusion_diffusers.metrics_log import LossWindow, MetricsLog, read_metrics


def test_records_after_the_resumed_step_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    for step in (2, 4, 6):
        log.append({"kind": "train", "step": step})
    with path.open("a") as file:
        file.write('{"kind": "train", "st')  # a killed run
    assert [record["step"] for record in read_metrics(path)] == [2, 4, 6]
    MetricsLog(path, resumed_step=4).append({"kind": "train", "step": 5})
    assert [record["step"] for record in read_metrics(path)] == [2, 4, 5]
    MetricsLog(path)
    assert path.read_text() == ""


def test_a_damaged_line_costs_no_other(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = (b'{"step": 2}', b"\xff\xfe", b"3", b'{"loss": 1}', b'{"step": null}', b"[" * 100_000, b'{"step": 4}')
    path.write_bytes(b"\n".join(lines))
    assert [record["step"] for record in read_metrics(path)] == [2, 4]


def test_lines_are_valid_json(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append({"step": 1, "loss": float("nan"), "name": "x"})
    assert json.loads(log.path.read_text(), parse_constant=pytest.fail) == {"step": 1, "loss": None, "name": "x"}


def test_each_loss_is_averaged_over_the_steps_that_had_it():
    window = LossWindow()
    window.add({"loss": 1.0})
    window.add({"loss": 2.0, "classification_loss": 5.0})
    resumed = LossWindow(json.loads(json.dumps(window.state())))
    for each in (window, resumed):
        each.add({"loss": 6.0})
        assert each.means() == {"loss": 3.0, "classification_loss": 5.0}
    window.clear()
    assert window.means() == {}
