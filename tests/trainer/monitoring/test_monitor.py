"""What is said of a running stage, and what is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from embae.datasets.loading.image_spec import ImageSpec
from embae.trainer.monitoring import step_rates
from embae.trainer.monitoring.monitor import Monitor
from embae.trainer.monitoring.step_rates import Clock, format_step, memory_gib

VALUES = {
    "loss": 0.12345,
    "right": 0.5,
    "lr": 3e-4,
    "images_per_s": 123.4,
    "waiting_percent": 7.6,
    "saving_percent": 0.0,
    "memory_gib": 1.23,
    "seconds_left": 42.0,
}


def test_the_line_says_it_all() -> None:
    assert format_step("embedding", 20, 500, VALUES) == (
        "[embedding] step 20/500  loss 0.1235 right 0.5000  lr 3.00e-04  123 images/s  waiting 8 %  1.2 GiB  42 s left"
    )
    without = {key: value for key, value in VALUES.items() if key != "right"}
    assert "loss 0.1235  lr" in format_step("autoencoder", 1, 2, without)


@pytest.mark.parametrize(
    "seconds, said",
    [
        (0, "0 s left"),
        (89.4, "89 s left"),
        (90, "2 min left"),
        (5399, "90 min left"),
        (5400, "1.5 h left"),
        (360_000, "100.0 h left"),
    ],
)
def test_time_left(seconds: float, said: str) -> None:
    assert format_step("s", 1, 2, {**VALUES, "seconds_left": seconds}).endswith(said)


def test_rates_of_a_known_time(monkeypatch: Any) -> None:
    now = 1000.0
    monkeypatch.setattr(step_rates.time, "perf_counter", lambda: now)
    clock = Clock(start=10, stop=30)
    now += 4.0
    for _ in range(5):
        clock.add_waiting(0.2)
        clock.add_saving(0.1)
        clock.add_images(64)
    first = clock.read(15)
    assert first["images_per_s"] == pytest.approx(80) and first["waiting_percent"] == pytest.approx(25)
    assert first["saving_percent"] == pytest.approx(12.5)
    assert first["seconds_left"] == pytest.approx(4 / 5 * 15)
    now += 1.0
    clock.add_images(64)
    second = clock.read(16)  # an interval of its own; the time left is over the whole stage
    assert second["images_per_s"] == pytest.approx(64) and second["waiting_percent"] == 0
    assert second["saving_percent"] == 0
    assert second["seconds_left"] == pytest.approx(5 / 6 * 14)
    assert clock.read(30)["seconds_left"] == 0


def test_memory_is_that_of_this_process() -> None:
    assert 0.05 < memory_gib() < 64


def test_records(tmp_path: Path, capsys: Any) -> None:
    kept = Monitor.open(tmp_path, True)
    kept.say("hello")
    kept.record("train", "embedding", 20, {"loss": 0.5, "loader": "dali"})
    kept.record("eval", "embedding", 40, {"mAP": 0.25, "queries": 10, "interval": {"mAP": [0.2, 0.3]}})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()  # before it is closed: a killed run keeps its records
    images = torch.zeros(2, 3, 8, 4)
    kept.record_images("embedding", 0, images, ImageSpec(8, 4, (0.5, 0.25, 1.0), (0.5, 0.5, 0.5)))
    kept.close()
    assert [json.loads(entry) for entry in lines] == [
        {"kind": "train", "stage": "embedding", "step": 20, "loss": 0.5, "loader": "dali"},
        {"kind": "eval", "stage": "embedding", "step": 40, "mAP": 0.25, "queries": 10, "interval": {"mAP": [0.2, 0.3]}},
    ]
    assert capsys.readouterr().out == "hello\n"
    board = EventAccumulator(str(tmp_path / "tensorboard" / "embedding"))
    board.Reload()
    assert set(board.Tags()["scalars"]) == {"train/loss", "eval/mAP", "eval/queries"}
    assert [(event.step, event.value) for event in board.Scalars("eval/mAP")] == [(40, 0.25)]
    assert board.Tags()["images"] == ["inputs"]
    again = Monitor.open(tmp_path, True)  # a run that goes on keeps what was there
    again.record("train", "embedding", 60, {"loss": 0.25})
    again.close()
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def test_a_stage_that_goes_on_takes_its_later_records_back(tmp_path: Path) -> None:
    kept = Monitor.open(tmp_path, True)
    for stage, last in (("embedding", 4), ("autoencoder", 5)):
        for step in range(1, last + 1):
            kept.record("train", stage, step, {"loss": step / 8})
            kept.record("eval", stage, step, {"mAP": step / 8})
    kept.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "stage": "auto')  # the power went
    again = Monitor.open(tmp_path, True)
    again.drop_later("autoencoder", 2)
    again.record("train", "autoencoder", 3, {"loss": 1.0})
    again.close()
    found = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in found if record["stage"] == "embedding"] == [1, 1, 2, 2, 3, 3, 4, 4]
    assert [(record["kind"], record["step"]) for record in found if record["stage"] == "autoencoder"] == [
        ("train", 1),
        ("eval", 1),
        ("train", 2),
        ("train", 3),
    ]
    board = EventAccumulator(str(tmp_path / "tensorboard" / "autoencoder"))
    board.Reload()
    assert [(event.step, event.value) for event in board.Scalars("train/loss")] == [(1, 0.125), (2, 0.25), (3, 1.0)]


def test_other_ranks_write_nothing(tmp_path: Path, capsys: Any) -> None:
    kept = Monitor.open(tmp_path, False)
    kept.say("hello")
    kept.record("train", "embedding", 20, {"loss": 0.5})
    kept.record_images("embedding", 0, torch.zeros(1, 3, 4, 4), ImageSpec(4, 4))
    kept.close()
    assert not list(tmp_path.iterdir()) and capsys.readouterr().out == ""


def test_keys_stand_beside_the_scores_in_hparams(tmp_path: Path) -> None:
    from tensorboard.plugins.hparams import plugin_data_pb2

    board = Monitor.open(tmp_path, first=True)
    settings = {"seed": 3, "stage": {"loss": {"triplet": {"margin": "soft"}}, "clip": None, "reinit": ["x"]}}
    board.record_settings("one", settings)
    board.record("eval", "one", 5, {"mAP": 0.25})
    board.close()
    events = EventAccumulator(str(tmp_path / "tensorboard" / "one"))
    events.Reload()
    tags = events.PluginTagToContent("hparams")
    start = plugin_data_pb2.HParamsPluginData.FromString(tags["_hparams_/session_start_info"]).session_start_info
    kept = {name: getattr(value, value.WhichOneof("kind")) for name, value in start.hparams.items()}
    assert kept == {"seed": 3, "stage.loss.triplet.margin": "soft", "stage.clip": "null", "stage.reinit": '["x"]'}
    shown = plugin_data_pb2.HParamsPluginData.FromString(tags["_hparams_/experiment"]).experiment
    assert "eval/mAP" in [info.name.tag for info in shown.metric_infos] and events.Scalars("eval/mAP")[0].step == 5
