"""Reading images upright as uint8 RGB, and the letterbox that takes boxes there and back."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from multigrid.data.images import BORDER, Letterbox, check_images, image_size, read_image
from multigrid.errors import InputError

RED, GREEN = (250, 10, 20), (30, 200, 40)


def write(path, image, **options):
    image.save(path, **options)
    return path


def scene(width, height, box):
    """A black image with a white rectangle (x1, y1, x2, y2)."""
    pixels = np.zeros((height, width, 3), np.uint8)
    x1, y1, x2, y2 = box
    pixels[y1:y2, x1:x2] = 255
    return Image.fromarray(pixels)


def with_orientation(image, orientation):
    exif = image.getexif()
    exif[0x0112] = orientation
    return exif


def one_line_naming(path, error):
    return str(path) in str(error.value) and "\n" not in str(error.value)


# --- upright


# EXIF names the visual side of the stored row 0 and column 0: 1 top left, 2 top right, 3 bottom right, 4 bottom left,
# then the same corners with rows and columns exchanged: 5 left top, 6 right top, 7 right bottom, 8 left bottom.
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_orientation_moves_the_stored_first_corner_where_exif_says(tmp_path, orientation, suffix):
    stored = Image.new("RGB", (96, 64), GREEN)
    stored.paste(RED, (0, 0, 32, 16))
    path = write(tmp_path / f"a.{suffix}", stored, exif=with_orientation(stored, orientation))
    pixels = read_image(path).astype(int)
    assert pixels.shape == ((64, 96, 3) if orientation <= 4 else (96, 64, 3))
    assert image_size(path) == pixels.shape[:2]
    row = 0 if orientation in (1, 2, 5, 6) else -1
    column = 0 if orientation in (1, 4, 5, 8) else -1
    for corner in [(0, 0), (0, -1), (-1, 0), (-1, -1)]:
        expected = RED if corner == (row, column) else GREEN
        assert np.abs(pixels[corner] - expected).max() < 30, corner
    # The red patch is 32 wide and 16 high as stored: its far end along the stored row is red, along the column not.
    along_row, along_column = (row, 24 if column == 0 else -25), (24 if row == 0 else -25, column)
    if orientation >= 5:
        along_row, along_column = along_column, along_row
    assert pixels[along_row][0] > 150 and pixels[along_column][0] < 120


def test_a_reduced_decode_of_a_turned_jpeg_is_turned_as_well(tmp_path):
    stored = Image.new("RGB", (640, 480), GREEN)
    path = write(tmp_path / "a.jpg", stored, exif=with_orientation(stored, 6))
    assert read_image(path, at_least=(320, 240)).shape == (320, 240, 3)
    # Upright 640 rows and 480 columns: 1/2 would have only 240 columns.
    assert read_image(path, at_least=(300, 241)).shape == (640, 480, 3)


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_exif_behind_the_pixels_of_a_png_is_seen_in_the_header_too(tmp_path):
    buffer = io.BytesIO()
    image = Image.new("RGB", (31, 17), GREEN)
    image.save(buffer, "PNG")
    head, tail = buffer.getvalue()[:-12], buffer.getvalue()[-12:]
    tiff = with_orientation(image, 8).tobytes().removeprefix(b"Exif\0\0")
    path = tmp_path / "late.png"
    path.write_bytes(head + png_chunk(b"eXIf", tiff) + tail)
    assert image_size(path) == (31, 17) == read_image(path).shape[:2]


def test_a_damaged_exif_block_does_not_hinder(tmp_path):
    path = write(tmp_path / "a.jpg", Image.new("RGB", (31, 17), GREEN), exif=b"Exif\0\0garbage garbage")
    assert image_size(path) == (17, 31) == read_image(path).shape[:2]


# --- pixel types


def test_sixteen_bits_become_the_upper_eight(tmp_path):
    grey = np.full((5, 9), 0x12FF, np.uint16)
    grey[1, 7] = 0xAB00
    pixels = read_image(write(tmp_path / "a.png", Image.fromarray(grey)))
    assert pixels.shape == (5, 9, 3) and pixels.dtype == np.uint8
    assert (pixels[1, 7] == 0xAB).all() and (pixels[0, 0] == 0x12).all()


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("L", 77, (77, 77, 77)),
        ("LA", (77, 3), (77, 77, 77)),
        ("RGBA", (9, 99, 200, 0), (9, 99, 200)),
        ("1", 1, (255, 255, 255)),
    ],
)
def test_grey_alpha_and_bits_become_rgb_and_alpha_is_dropped(tmp_path, mode, colour, expected):
    pixels = read_image(write(tmp_path / "a.png", Image.new(mode, (9, 5), colour)))
    assert pixels.shape == (5, 9, 3) and pixels.dtype == np.uint8
    assert (pixels == expected).all()


def test_a_palette_with_transparency_becomes_rgb_without_a_warning(tmp_path):
    image = Image.new("P", (9, 5), 1)
    image.putpalette([0, 0, 0, 12, 34, 56])
    # Two half transparent colours: Pillow warns when it drops those.
    path = write(tmp_path / "a.png", image, transparency=bytes([100, 7]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (read_image(path) == (12, 34, 56)).all()


def test_cmyk_becomes_rgb(tmp_path):
    # Cyan 0, magenta 255, yellow 255, black 0: red.
    path = write(tmp_path / "a.jpg", Image.new("CMYK", (48, 32), (0, 255, 255, 0)), quality=95)
    assert np.abs(read_image(path).astype(int) - (255, 0, 0)).max() < 12


def test_the_first_frame_of_an_animation_is_read(tmp_path):
    frames = [Image.new("RGB", (9, 5), colour) for colour in (RED, GREEN)]
    path = write(tmp_path / "a.gif", frames[0], save_all=True, append_images=frames[1:])
    assert (read_image(path) == RED).all()


def test_the_array_is_writable_and_contiguous(tmp_path):
    for suffix, orientation in [("png", 1), ("jpg", 6)]:
        image = Image.new("RGB", (9, 5), GREEN)
        pixels = read_image(write(tmp_path / f"a.{suffix}", image, exif=with_orientation(image, orientation)))
        assert pixels.flags.writeable and pixels.flags.c_contiguous


# --- what is no image


@pytest.fixture
def broken(tmp_path, rng):
    """Broken files by name: a truncated JPEG and PNG, an empty file, a text, a folder, a missing one, a float image."""
    noise = Image.fromarray(rng.integers(0, 255, (64, 96, 3), np.uint8))
    for suffix in ("jpg", "png"):
        whole = write(tmp_path / f"whole.{suffix}", noise).read_bytes()
        (tmp_path / f"truncated.{suffix}").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("this is no image\n")
    (tmp_path / "folder.jpg").mkdir()
    write(tmp_path / "float.tif", Image.new("F", (9, 5), 0.5))
    return tmp_path


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("truncated.jpg", "truncated"),
        ("truncated.png", "truncated"),
        ("empty.jpg", "an empty file"),
        ("text.jpg", "no known image format"),
        ("folder.jpg", "directory"),
        ("missing.jpg", "no file"),
        ("float.tif", "mode F"),
    ],
)
@pytest.mark.parametrize("at_least", [None, (1, 1)])
def test_a_broken_file_is_one_line_that_names_it(broken, name, reason, at_least):
    with pytest.raises(InputError, match=reason) as error:
        read_image(broken / name, at_least)
    assert one_line_naming(broken / name, error)


def test_the_size_of_a_broken_file_is_refused_too(broken):
    for name in ("empty.jpg", "text.jpg", "missing.jpg"):
        with pytest.raises(InputError) as error:
            image_size(broken / name)
        assert one_line_naming(broken / name, error)


def test_a_gigantic_image_is_refused(tmp_path, monkeypatch):
    path = write(tmp_path / "a.png", Image.new("RGB", (96, 64)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)  # Pillow raises above twice this: 96 * 64 = 6144 > 6000
    with pytest.raises(InputError, match="decompression bomb") as error:
        read_image(path)
    assert one_line_naming(path, error)


def test_check_images_names_the_count_and_the_first_three(broken):
    names = ["whole.jpg", "truncated.jpg", "empty.jpg", "whole.png", "text.jpg", "missing.jpg", "text.jpg"]
    seen = []
    with pytest.raises(InputError) as error:
        check_images([str(broken / name) for name in names], progress=lambda done, total: seen.append((done, total)))
    message = str(error.value)
    # Six different files, four of them broken.
    assert message.startswith("4 of 6 images cannot be read: ")
    assert [name in message for name in ("truncated.jpg", "empty.jpg", "text.jpg")] == [True] * 3
    assert "missing.jpg" not in message and message.endswith("; ...") and "\n" not in message
    assert seen == [(6, 6)]


def test_check_images_is_silent_about_whole_ones_and_looks_at_all(broken):
    seen = []
    links = [broken / f"link{number}.jpg" for number in range(150)]
    for link in links:
        link.symlink_to(broken / "whole.jpg")
    check_images(map(str, links), progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (150, 150) and seen == sorted(seen)
    links[149].unlink()
    with pytest.raises(InputError, match="1 of 150 .*link149"):
        check_images(map(str, links))


# --- reduced decodes


# 640 x 480: 1/2 is 320 x 240, 1/4 is 160 x 120, 1/8 is 80 x 60 (width x height).
@pytest.mark.parametrize(
    ("at_least", "expected"),
    [
        ((240, 320), (240, 320)),
        ((241, 320), (480, 640)),
        ((240, 321), (480, 640)),
        ((61, 80), (120, 160)),
        ((60, 80), (60, 80)),
        ((1, 1), (60, 80)),
        ((900, 900), (480, 640)),
    ],
)
def test_a_jpeg_is_reduced_as_far_as_is_allowed(tmp_path, at_least, expected):
    path = write(tmp_path / "a.jpg", Image.new("RGB", (640, 480)))
    assert read_image(path, at_least).shape == (*expected, 3)


def test_only_jpegs_are_reduced(tmp_path):
    path = write(tmp_path / "a.png", Image.new("RGB", (640, 480)))
    assert read_image(path, (60, 80)).shape == (480, 640, 3)


def test_a_reduction_that_would_displace_the_far_edge_is_not_taken(tmp_path):
    # 1/8 of 329 is 42 pixels for 336: 7 / 329 * 42 = 0.9 pixels too far; 1/4 is 83 for 332: 3 / 329 * 42 = 0.4.
    path = write(tmp_path / "a.jpg", Image.new("RGB", (329, 800)))
    assert read_image(path, at_least=(10, 42)).shape == (200, 83, 3)


# --- letterbox

sides = st.integers(1, 4000)
inputs = st.tuples(st.integers(1, 40), st.integers(1, 40)).map(lambda size: (32 * size[0], 32 * size[1]))


@given(source=st.tuples(sides, sides), target=inputs, data=st.data())
def test_undo_is_the_inverse_of_apply(source, target, data):
    letterbox = Letterbox.fit(source, target)
    height, width = source
    x, y = st.floats(0, width, width=32), st.floats(0, height, width=32)
    boxes = np.array(data.draw(st.lists(st.tuples(x, y, x, y), max_size=5)), np.float32).reshape(-1, 4)
    # An input pixel is a float32 below 2048, so exact to 2048 / 2**24 = 1.2e-4 pixels; undone it grows by 1 / scale.
    tolerance = 1.3e-4 / min(letterbox.scale)
    for clip in (True, False):
        back = letterbox.undo_boxes(letterbox.apply_boxes(boxes), clip=clip)
        assert back.dtype == np.float32 and back.shape == boxes.shape
        np.testing.assert_allclose(back, boxes, rtol=1e-6, atol=tolerance)


@given(source=st.tuples(sides, sides), target=inputs)
def test_the_image_keeps_its_aspect_fills_one_side_and_is_centred(source, target):
    letterbox = Letterbox.fit(source, target)
    height, width = letterbox.resized_size
    left, top = letterbox.pad
    assert 1 <= height <= target[0] and 1 <= width <= target[1]
    assert height == target[0] or width == target[1]
    ratio = min(target[0] / source[0], target[1] / source[1])
    assert abs(height - max(1, source[0] * ratio)) <= 0.5 + 1e-6
    assert abs(width - max(1, source[1] * ratio)) <= 0.5 + 1e-6
    assert 0 <= target[1] - width - 2 * left <= 1 and 0 <= target[0] - height - 2 * top <= 1
    # The whole source goes exactly onto the resized image: 1e-3 for float32.
    corners = letterbox.apply_boxes(np.array([0, 0, source[1], source[0]]))
    np.testing.assert_allclose(corners, [left, top, left + width, top + height], atol=1e-3)


def test_a_wide_image_has_its_border_above_and_below():
    # 100 high, 300 wide into 96 high, 150 wide: ratio 1/2, 50 rows, (96 - 50) / 2 = 23 above and below.
    letterbox = Letterbox.fit((100, 300), (96, 150))
    assert letterbox.resized_size == (50, 150)
    assert letterbox.scale == (0.5, 0.5)
    assert letterbox.pad == (0, 23)
    boxes = letterbox.apply_boxes(np.array([[20.0, 10.0, 300.0, 60.0]]))
    np.testing.assert_array_equal(boxes, [[10, 28, 150, 53]])
    outside = np.array([[-4.0, 13.0, 160.0, 96.0]])  # x: -8 .. 320, y: (13 - 23) * 2 = -20 .. 146
    np.testing.assert_array_equal(letterbox.undo_boxes(outside, clip=False), [[-8, -20, 320, 146]])
    np.testing.assert_array_equal(letterbox.undo_boxes(outside), [[0, 0, 300, 100]])
    image = letterbox.apply_image(np.full((100, 300, 3), 7, np.uint8))
    assert image.shape == (96, 150, 3) and image.dtype == np.uint8
    assert (image[:23] == BORDER).all() and (image[73:] == BORDER).all() and (image[23:73] == 7).all()


def test_the_border_of_a_tall_image_is_left_and_right_whatever_the_resolution():
    letterbox = Letterbox.fit((300, 99), (96, 150))  # 96 rows, 99 * 0.32 = 31.68: 32 columns, 59 left and 59 right
    for size in [(300, 99), (150, 50), (96, 32)]:
        image = letterbox.apply_image(np.full((*size, 3), 200, np.uint8))
        assert (image[:, :59] == BORDER).all() and (image[:, 91:] == BORDER).all() and (image[:, 59:91] == 200).all()


def test_the_letterbox_of_an_image_is_a_new_array():
    image = np.full((64, 96, 3), 5, np.uint8)
    boxed = Letterbox.fit((64, 96), (64, 96)).apply_image(image)
    np.testing.assert_array_equal(boxed, image)
    assert not np.shares_memory(boxed, image)


@pytest.mark.parametrize("size", [(640, 480), (1001, 403), (403, 1001), (2003, 1502), (200, 90)])
@pytest.mark.parametrize("target", [(320, 416), (224, 160)])
@pytest.mark.parametrize("reduced", [False, True])
def test_the_pixels_of_a_rectangle_stay_in_its_box(tmp_path, size, target, reduced):
    width, height = size
    box = (width // 9, height // 4, width * 5 // 7, height * 8 // 9)
    path = write(tmp_path / "a.jpg", scene(width, height, box), quality=95)
    letterbox = Letterbox.fit(image_size(path), target)
    image = read_image(path, letterbox.resized_size if reduced else None)
    pixels = letterbox.apply_image(image)[..., 0]
    left, top = letterbox.pad
    resized_height, resized_width = letterbox.resized_size
    x1, y1, x2, y2 = letterbox.apply_boxes(np.array(box)) - (left, top, left, top)
    rows, columns = np.nonzero(pixels[top : top + resized_height, left : left + resized_width] > 140)
    # More than half of an edge pixel is white, so the edge is within half a pixel; a reduced decode adds half of one.
    slack = 1.05 if reduced else 0.55
    found = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    np.testing.assert_allclose(found, [x1, y1, x2, y2], atol=slack)


@pytest.mark.parametrize("size", [(0, 5), (3,), (4, -1)])
def test_a_letterbox_needs_positive_sizes(size):
    with pytest.raises(ValueError, match="expected source_size"):
        Letterbox(size, (32, 64))
