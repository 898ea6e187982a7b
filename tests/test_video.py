"""Videos are read and written frame for frame."""

import cv2
import numpy as np
import pytest

from multigrid.errors import InputError
from multigrid.prediction.video import VideoInfo, VideoWriter, read_frames, read_info

RATE = 12.5
SIZE = (67, 101)  # odd, which few codecs take


def grey_of(index):
    """Far enough apart for a lossy codec."""
    return 10 + 9 * index


def write_film(path, frames=20, size=SIZE):
    """A video whose frames are grey and tell by how much which they are; the upper left corner is red."""
    with VideoWriter(path, RATE) as video:
        for index in range(frames):
            image = np.full((*size, 3), grey_of(index), np.uint8)
            image[:24, :40] = (250, 20, 20)
            video.write(image)
    return path


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    return write_film(tmp_path_factory.mktemp("film") / "below" / "film.mp4")


def test_every_frame_comes_back_in_order_with_its_number_and_time(film):
    frames = list(read_frames(film))
    assert [frame.index for frame in frames] == list(range(20))
    assert [round((frame.image[40:, 50:].mean() - grey_of(0)) / 9) for frame in frames] == list(range(20))
    np.testing.assert_allclose([frame.time for frame in frames], np.arange(20) / RATE, atol=1e-6)
    assert {frame.path for frame in frames} == {str(film)}


def test_colours_are_rgb_and_odd_sides_are_continued(film):
    image = next(read_frames(film)).image
    # 67 × 101 becomes 68 × 102; the last line repeats the one before.
    assert image.shape == (68, 102, 3) and image.dtype == np.uint8
    assert image[8, 8, 0] > 200 and image[8, 8, 2] < 60
    assert abs(int(image[67, 90, 0]) - int(image[66, 90, 0])) < 12


def test_the_header_is_read(film):
    assert read_info(film) == VideoInfo(RATE, 20)


def test_a_film_that_is_not_finished_leaves_nothing(tmp_path):
    with pytest.raises(KeyError), VideoWriter(tmp_path / "x.mp4", RATE) as video:
        video.write(np.zeros((*SIZE, 3), np.uint8))
        raise KeyError("something else went wrong")
    assert list(tmp_path.iterdir()) == []


def test_frames_of_two_sizes_are_no_video(tmp_path):
    with pytest.raises(ValueError, match=r"expected frames of \(67, 101\), received one of \(101, 67\)"):
        with VideoWriter(tmp_path / "x.mp4", RATE) as video:
            video.write(np.zeros((*SIZE, 3), np.uint8))
            video.write(np.zeros((*SIZE[::-1], 3), np.uint8))


@pytest.mark.parametrize(
    ("content", "complaint"), [(b"", "an empty file"), (b"not found\n" * 9, "damaged, or of no known format")]
)
def test_what_is_no_video_is_named(tmp_path, content, complaint):
    path = tmp_path / "x.mp4"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"x\.mp4: expected a video, received .*{complaint}"):
        next(read_frames(path))


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.mp4: expected a video, received no file of this name"):
        read_info(tmp_path / "none.mp4")
    with pytest.raises(InputError, match="camera 97: expected a camera, received none that answers"):
        next(read_frames(97))


def test_a_camera_has_a_clock_of_its_own_and_no_end(film, monkeypatch):
    real = cv2.VideoCapture
    monkeypatch.setattr(cv2, "VideoCapture", lambda source, *backend: real(str(film)) if source == 3 else None)
    assert read_info(3) == VideoInfo(RATE, None)
    frames = []
    with pytest.raises(InputError, match="camera 3: expected frames until nobody wants more, received 20"):
        frames += (frame for frame in read_frames(3))
    assert {frame.path for frame in frames} == {"camera 3"} and [frame.index for frame in frames] == list(range(20))
    times = [frame.time for frame in frames]
    # What comes from a file comes faster than its 80 ms a frame.
    assert times[0] == 0 and times == sorted(set(times)) and times[-1] < 19 * 0.08


def test_a_film_that_ends_early_gives_what_there_is_and_then_says_so(tmp_path):
    # An .avi has its header in front, so half of one can still be opened.
    path = tmp_path / "cut.avi"
    video = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*"MJPG"), RATE, (96, 64))
    for index in range(60):
        video.write(np.full((64, 96, 3), grey_of(index % 20), np.uint8))
    video.release()
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    seen = []
    with pytest.raises(InputError, match=r"cut\.avi: expected 60 frames as its header says, received \d+$") as error:
        seen += (frame.index for frame in read_frames(path))
    assert 15 < len(seen) < 45 and seen == list(range(len(seen)))
    assert str(error.value).endswith(f"received {len(seen)}")
