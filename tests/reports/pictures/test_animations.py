"""Frames say where they stand, and a GIF plays them as they are, on one palette."""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from support.explanations import explained_phantom

from mediffusion_diffusers.reports.pictures import animations, drawing


@pytest.fixture(scope="module")
def explained():
    return replace(explained_phantom(), boxes=())


@pytest.fixture(scope="module")
def frames(explained):
    return animations.transition_frames(explained, num_frames=4)


def shown(frame, explained):
    """The picture and the difference in a frame, at their own size, in 8-bit RGB."""
    side = drawing.PICTURE_SIDE
    top = drawing.heading_height(explained.heading, explained.name) + 30
    columns = [drawing.MARGIN, drawing.MARGIN + side + drawing.GAP]
    half = side // 64  # the middle of each enlarged pixel
    return [
        np.asarray(frame)[top : top + side, left : left + side][half :: 2 * half, half :: 2 * half] for left in columns
    ]


def played(content):
    """Every frame of a GIF in RGB, with its duration."""
    gif = Image.open(io.BytesIO(content))
    pictures, durations = [], []
    for index in range(gif.n_frames):
        gif.seek(index)
        pictures.append(np.asarray(gif.convert("RGB")))
        durations.append(gif.info["duration"])
    return pictures, durations, gif.info.get("loop")


def test_a_transition_begins_at_the_original_and_ends_at_the_counterfactual(explained, frames):
    difference, limit = explained.difference(explained.counterfactual), explained.limit()
    for frame, share in zip(frames, np.linspace(0, 1, 4), strict=True):
        picture, change = shown(frame, explained)
        blend = (1 - share) * explained.original.image + share * explained.counterfactual.image
        assert np.array_equal(picture, drawing.picture_pixels(blend))
        assert np.array_equal(change, drawing.difference_pixels(share * difference, limit))
    with pytest.raises(ValueError, match="at least 2"):
        animations.transition_frames(explained, num_frames=1)


def test_both_probabilities_stay_while_the_knob_moves(explained, frames):
    def words(frame, part):
        row = np.asarray(frame)[-110:-60, drawing.MARGIN : drawing.MARGIN + drawing.PICTURE_SIDE].astype(int)
        return row[:, :58] if part == "before" else row[:, -58:]

    middle = [words(frame, "before") for frame in frames[1:3]]
    assert np.array_equal(*middle)
    assert words(frames[0], "before").sum() < words(frames[1], "before").sum()  # bold ink is more ink
    assert words(frames[-1], "after").sum() < words(frames[1], "after").sum()
    assert not np.array_equal(frames[1], frames[2])


def test_a_sweep_has_a_frame_for_each_scale(explained):
    frames = animations.sweep_frames(explained)
    assert len(frames) == 3 and len({frame.size for frame in frames}) == 1
    for frame, stop in zip(frames, explained.sweep.stops, strict=True):
        assert np.array_equal(shown(frame, explained)[0], drawing.picture_pixels(stop.image))
    with pytest.raises(ValueError, match="is None"):
        animations.sweep_frames(replace(explained, sweep=None))


def test_a_gif_plays_there_and_back_for_ever(frames):
    pictures, durations, loop = played(animations.gif_bytes(frames, 80, 1200))
    shared = [np.asarray(frame.convert("RGB")) for frame in animations.share_palette(frames)]
    assert loop == 0 and durations == [1200, 80, 80, 1200, 80, 80]
    for picture, index in zip(pictures, [0, 1, 2, 3, 2, 1], strict=True):
        assert np.array_equal(picture, shared[index])


def test_greys_do_not_flicker():
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (5, 40, 40, 3)).astype(np.uint8)  # each with colours of its own
    frames[:, 10:30] = rng.integers(0, 256, (20, 40, 1))  # and a part in grey that stays
    pictures, _, _ = played(animations.gif_bytes([Image.fromarray(frame) for frame in frames]))
    assert all(np.array_equal(picture[10:30], pictures[0][10:30]) for picture in pictures)
    assert not np.array_equal(pictures[0], pictures[1])


def test_colours_are_kept_closely(frames):
    for frame, shared in zip(frames, animations.share_palette(frames), strict=True):
        error = np.abs(np.asarray(frame).astype(int) - np.asarray(shared.convert("RGB")))
        assert error.mean() < 1 and error.max() <= 16
        assert shared.getpalette() == animations.share_palette(frames)[0].getpalette()


def test_one_and_two_frames_are_animations_too():
    first, second = (Image.new("RGB", (8, 8), colour) for colour in ("black", "white"))
    assert played(animations.gif_bytes([first], 80, 500))[1] == [500]
    assert played(animations.gif_bytes([first, second], 80, 500))[1] == [500, 500]


def test_a_file_is_whole_or_not_there(frames, tmp_path):
    path = animations.save_gif(frames, tmp_path / "folder" / "a.gif")
    assert path.read_bytes() == animations.gif_bytes(frames)
    assert [entry.name for entry in path.parent.iterdir()] == ["a.gif"]
    for wrong in ([], [frames[0], frames[0].resize((8, 8))]):
        with pytest.raises(ValueError, match="all of one size"):
            animations.save_gif(wrong, path)
    assert path.read_bytes() == animations.gif_bytes(frames)
