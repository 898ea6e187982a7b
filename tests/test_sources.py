"""Whatever holds images comes to a list of images, videos and cameras, and to what a pipeline streams."""

import logging
import threading

import numpy as np
import pytest
from PIL import Image

from multigrid.errors import InputError
from multigrid.prediction import sources
from multigrid.prediction.sources import (
    Item,
    Listing,
    check_any_usable,
    expand,
    list_source,
    open_items,
    single_image,
)
from multigrid.prediction.video import VideoWriter


@pytest.fixture
def folder(tmp_path):
    """Two images, a video, a text and a hidden image; one image more in a folder below."""
    for name in ("b.JPG", "a.png", "clip.mp4", "notes.txt", ".hidden.jpg", "below/c.jpg", "below/labels.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    return tmp_path


def names(listing, folder):
    return [(item.kind, str(item.what).removeprefix(f"{folder}/")) for item in listing.items]


def test_a_folder_means_its_own_files_in_order(folder):
    listing = list_source(folder)
    assert names(listing, folder) == [("image", "a.png"), ("image", "b.JPG"), ("video", "clip.mp4")]
    assert listing.left_out == 1


def test_a_pattern_looks_into_folders_but_takes_no_hidden_file(folder):
    listing = list_source(f"{folder}/**/*")
    expected = [("image", "a.png"), ("image", "b.JPG"), ("image", "below/c.jpg"), ("video", "clip.mp4")]
    assert names(listing, folder) == expected and listing.left_out == 2
    assert names(list_source(f"{folder}/*/*.jpg"), folder) == [("image", "below/c.jpg")]


def test_a_link_to_nothing_is_no_less_an_item_than_its_image(folder):
    (folder / "gone.jpg").symlink_to(folder / "nowhere.jpg")
    (folder / "round.jpg").symlink_to(folder / "round.jpg")
    for source in (folder, f"{folder}/*.*"):
        listing = list_source(source)
        assert names(listing, folder)[-2:] == [("image", "gone.jpg"), ("image", "round.jpg")] and listing.left_out == 1


def test_a_file_whose_name_looks_like_a_pattern_or_a_camera_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("x[1].jpg", "0"):
        (tmp_path / name).write_bytes(b"")
        assert list_source(name) == Listing([Item("image", name)], 0)
        assert single_image(name)
    assert list_source("1") == list_source(1) == Listing([Item("camera", 1)], 0)


def test_what_comes_to_nothing_is_an_error(folder):
    (folder / "empty").mkdir()
    with pytest.raises(InputError, match="empty: expected a folder of images or videos, received one without; a patte"):
        list_source(folder / "empty")
    with pytest.raises(InputError, match=r"\*\.tif: expected a pattern of images or videos, received one without$"):
        list_source(f"{folder}/*.tif")
    with pytest.raises(InputError, match="received one without; 1 other file left out"):
        list_source(f"{folder}/*.txt")


@pytest.mark.parametrize("source", [None, 1.5, True, {"a": 1}])
def test_what_is_no_source_is_a_type_error(source):
    with pytest.raises(TypeError, match="source: expected a path, pixels, an image or a camera, received"):
        list_source(source)


@pytest.mark.parametrize("source", [b"\x00\x01", bytearray(b"\x00\x01"), memoryview(b"\x00\x01"), [b"\x00\x01"]])
def test_bytes_are_no_cameras(source):
    with pytest.raises(TypeError, match=r"received (bytes|bytearray|memoryview); PIL\.Image\.open\(io\.BytesIO\("):
        next(expand(source))


def test_one_image_is_told_from_many(folder):
    pixels = np.zeros((2, 6, 9, 3), np.uint8)
    assert all(single_image(one) for one in (pixels[0], Image.new("L", (9, 6)), "a.jpg", folder / "gone.png"))
    many = (pixels, folder, f"{folder}/*.png", "clip.mp4", 0, "0", ["a.jpg"], [])
    assert not any(single_image(one) for one in many)


def test_several_sources_come_one_after_the_other_as_they_are_asked_for(folder, caplog):
    asked = []
    pixels = np.zeros((2, 6, 9, 3), np.uint8)

    def given():
        for source in (folder, pixels[0], f"{folder}/*.tif", "x.jpg"):
            asked.append(source)
            yield source

    with caplog.at_level(logging.WARNING):
        stream = expand(given())
        assert [next(stream).kind for _ in range(3)] == ["image", "image", "video"] and len(asked) == 1
        array, error, path = stream
    assert array.what is not None and isinstance(error, InputError) and path == Item("image", "x.jpg")
    assert [record.getMessage() for record in caplog.records] == [f"{folder}: 1 other file left out"]
    assert [item.what.shape for item in expand(pixels)] == [(6, 9, 3)] * 2


@pytest.fixture
def film(tmp_path):
    with VideoWriter(tmp_path / "film.mp4", 10) as video:
        for index in range(30):
            video.write(np.full((32, 48, 3), 8 * index, np.uint8))
    return str(tmp_path / "film.mp4")


def test_a_video_is_opened_to_frames_and_a_broken_one_to_an_error_in_its_place(film, tmp_path):
    (tmp_path / "bad.avi").write_bytes(b"no")
    items = [Item("image", "x.jpg"), Item("video", film), Item("video", str(tmp_path / "bad.avi")), Item("image", "y")]
    first, *frames, error, last = open_items(items)
    assert (first, last) == ("x.jpg", "y") and "bad.avi: expected a video" in str(error)
    assert [frame.index for frame in frames] == list(range(30))
    assert [frame.index for frame in open_items([Item("video", film)], limit=4)] == [0, 1, 2, 3]


def test_frames_are_read_ahead_and_not_to_the_end(film, monkeypatch):
    read, real, reached = [], sources.read_frames, threading.Event()

    def watched(path):
        for frame in real(path):
            read.append(frame.index)
            if len(read) == sources.AHEAD + 1:
                reached.set()
            yield frame

    monkeypatch.setattr(sources, "read_frames", watched)
    stream = open_items([Item("video", film)])
    assert next(stream).index == 0
    assert reached.wait(10)  # one was taken, eight more wait
    stream.close()
    assert len(read) == sources.AHEAD + 1


def test_a_source_that_can_be_read_is_enough(folder, tmp_path):
    broken = [Item("image", str(folder / name)) for name in ("a.png", "b.JPG")] + [
        Item("video", str(folder / "clip.mp4"))
    ]
    with pytest.raises(
        InputError, match=r"none of 3 images and videos can be read: .*a\.png.*; .*b\.JPG.*; .*clip\.mp4"
    ):
        check_any_usable(broken)
    with pytest.raises(InputError, match=r"^[^;]*a\.png: expected an image, received an empty file$"):
        check_any_usable(broken[:1])
    Image.new("L", (9, 6)).save(tmp_path / "good.png")
    check_any_usable([*broken, Item("image", str(tmp_path / "good.png")), Item("image", "nobody looks at this one")])
