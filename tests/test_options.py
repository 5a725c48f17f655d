import dataclasses
import math
from dataclasses import dataclass
from typing import Annotated, Literal

import pytest

from mediffusion_diffusers.option_parser import OptionParser
from mediffusion_diffusers.options import Range, check_number, check_options, option


@dataclass(frozen=True)
class Schedule:
    _argument_group_name = "schedule"
    preset: str | None = option(None, "Name of a row of defaults.")
    learning_rate: Annotated[float, Range(above=0)] = option(1e-4, "Largest learning rate, at 50 % of the run.")
    share: Annotated[float | None, Range(above=0, at_most=1)] = option(None, "Share of the images.")
    steps: Annotated[int, Range(at_least=1)] = option(10, "Steps.")
    scales: Annotated[list[float], Range(at_least=0)] = option([1.0, 2.0], "Scales to try.")
    start: Literal["inversion", "noise"] = option("inversion", "How to begin.")
    flip: bool = option(False, "Mirror every second image.")
    use_ema: bool = option(True, "Average the weights.")
    controls: bool = option(True, "Make the controls.")
    fade: bool | None = option(None, "Let it fade.")
    seed: Annotated[int, Range(at_least=0)] | None = option(None, "Seed; by default another each time.")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"learning_rate": math.nan}, "`learning_rate` must be a number above 0, but got nan"),
        ({"learning_rate": 0}, "`learning_rate` must be a number above 0, but got 0"),
        ({"learning_rate": math.inf}, "`learning_rate` must be a number above 0, but got inf"),
        ({"learning_rate": "fast"}, "`learning_rate` must be a number above 0, but got 'fast'"),
        ({"learning_rate": None}, "`learning_rate` must be a number above 0, but got None"),
        ({"share": 1.5}, r"`share` must be a number in \(0, 1\], but got 1.5"),
        ({"steps": 2.0}, "`steps` must be a whole number at least 1, but got 2.0"),
        ({"steps": True}, "`steps` must be a whole number at least 1, but got True"),
        ({"scales": [1.0, math.nan]}, "`scales` must be a number at least 0, but got nan"),
        ({"seed": -1}, "`seed` must be a whole number at least 0, but got -1"),
        ({"start": "middle"}, "`start` must be one of 'inversion', 'noise', but got 'middle'"),
        ({"start": ["noise"]}, r"`start` must be one of 'inversion', 'noise', but got \['noise'\]"),
    ],
)
def test_each_field_is_held_to_its_type(change, message):
    check_options(Schedule())
    check_options(Schedule(share=1, scales=[0], seed=3))
    with pytest.raises(ValueError, match=message):
        check_options(dataclasses.replace(Schedule(), **change))


def test_a_number_without_a_range_is_finite():
    check_number("hold", -3.5)
    with pytest.raises(ValueError, match="`hold` must be finite, but got nan"):
        check_number("hold", math.nan)


def test_an_empty_command_line_is_the_defaults():
    assert OptionParser(Schedule).parse([]) == (Schedule(),)


def test_a_command_line_is_derived(capsys):
    (schedule,) = OptionParser(Schedule).parse(["--share", "0.5", "--scales", "1", "3", "--flip", "--fade", "false"])
    assert schedule == Schedule(share=0.5, scales=[1.0, 3.0], flip=True, fade=False)
    with pytest.raises(SystemExit):
        OptionParser(Schedule).parse(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "schedule:" in text and "at 50 % of the run. A number above 0. (default: 0.0001)" in text
    assert "Share of the images. A number in (0, 1]. --" in text


def test_a_preset_is_a_row_of_defaults_that_the_command_line_overrules():
    presets = {"small": {"learning_rate": 0.1, "flip": True, "steps": 3}}
    lines = (
        ["--preset", "small", "--steps", "7"],
        ["--steps", "7", "--preset", "small"],
        ["--preset=small", "--steps=7"],
    )
    for line in lines:
        assert OptionParser(Schedule, presets=presets).parse(line) == (Schedule("small", 0.1, steps=7, flip=True),)
    for negation in ("--no-use_ema", "--no_use_ema", "--no-use-ema"):
        assert not OptionParser(Schedule).parse([negation])[0].use_ema
    for negation in (["--no-controls"], ["--no_controls"], ["--controls", "false"]):
        assert not OptionParser(Schedule).parse(negation)[0].controls
    for negation in (["--no-flip"], ["--no_flip"], ["--flip", "false"]):
        assert not OptionParser(Schedule, presets=presets).parse(["--preset", "small", *negation])[0].flip
    with pytest.raises(ValueError, match=r"`preset` must be one of \['small'\], but got 'large'"):
        OptionParser(Schedule, presets=presets).parse(["--preset", "large"])
    with pytest.raises(ValueError, match=r"Preset 'wrong' sets options that do not exist: \['pace'\]"):
        OptionParser(Schedule, presets={"wrong": {"pace": 1}}).parse(["--preset", "wrong"])
