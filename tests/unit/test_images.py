import io
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mura_ray.images import MAX_PIXELS, read_gray, resize_gray

FRACATLAS = Path(__file__).parents[3] / "shared" / "fracatlas-sample"
GRAY = np.arange(6 * 5, dtype=np.uint8).reshape(6, 5) * 8


def encoded(image: Image.Image | np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def png(width: int, height: int, bit_depth: int, colour: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG file by the specification, without Pillow."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bit_depth, colour, 0, 0, 0))
    between = b"".join(chunk(*named) for named in chunks)
    return b"\x89PNG\r\n\x1a\n" + header + between + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_gray_png_is_read_exactly():
    gray = read_gray(encoded(GRAY))
    assert gray.dtype == np.uint8
    np.testing.assert_array_equal(gray, GRAY)


def test_gray_jpeg_is_read_to_within_its_loss():
    smooth = np.add.outer(np.arange(64), np.arange(48)).astype(np.uint8)
    np.testing.assert_allclose(read_gray(encoded(smooth, "JPEG", quality=95)), smooth, atol=2)


def test_colour_is_reduced_by_itu_r_601_luma():
    pixels = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [10, 200, 90]]], dtype=np.uint8)
    # 0.299 R + 0.587 G + 0.114 B: 76.2, 149.7, 29.1 and 2.99 + 117.4 + 10.26 = 130.65
    np.testing.assert_allclose(read_gray(encoded(pixels)), [[76, 150, 29, 131]], atol=1)


def test_gray_stored_as_rgb_stays_what_it_is():
    np.testing.assert_array_equal(read_gray(encoded(np.stack([GRAY] * 3, axis=-1))), GRAY)


def test_16_bit_gray_keeps_its_upper_8_bits():
    rows = b"\0" + struct.pack(">4H", 0x0000, 0x00FF, 0x1234, 0xFFFF)
    assert read_gray(png(4, 1, 16, 0, rows)).tolist() == [[0x00, 0x00, 0x12, 0xFF]]


def test_1_bit_becomes_black_and_white():
    assert read_gray(png(4, 1, 1, 0, b"\0\xa0")).tolist() == [[255, 0, 255, 0]]


def test_palette_is_looked_up_and_its_transparency_dropped():
    palette = bytes([0, 0, 0, 200, 200, 200, 90, 90, 90])
    file = png(3, 1, 8, 3, b"\0\0\1\2", (b"PLTE", palette), (b"tRNS", bytes([0, 128, 255])))
    assert read_gray(file).tolist() == [[0, 200, 90]]


@pytest.mark.parametrize(
    ("colour", "pixel", "transparent"),
    [(4, b"\x50\x00", ()), (6, b"\x50\x50\x50\x00", ()), (2, b"\x50\x50\x50", ((b"tRNS", b"\0\x50\0\x50\0\x50"),))],
)
def test_transparency_is_dropped(colour: int, pixel: bytes, transparent: tuple[tuple[bytes, bytes], ...]):
    assert read_gray(png(2, 1, 8, colour, b"\0" + pixel * 2, *transparent)).tolist() == [[0x50, 0x50]]


def test_cmyk_jpeg():
    cmyk = Image.new("CMYK", (16, 8), (0, 0, 0, 155))  # 255 - 155 = 100 in all of R, G and B
    np.testing.assert_allclose(read_gray(encoded(cmyk, "JPEG", quality=95)), np.full((8, 16), 100), atol=2)


def test_orientation_tag_is_ignored():
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    smooth = np.add.outer(np.arange(64), np.arange(48)).astype(np.uint8)
    with_tag = read_gray(encoded(smooth, "JPEG", exif=exif))
    assert with_tag.shape == (64, 48)
    np.testing.assert_array_equal(with_tag, read_gray(encoded(smooth, "JPEG")))


@pytest.mark.filterwarnings("ignore")  # Pillow may warn of the metadata; a program runs without warnings as errors
def test_corrupt_exif_beside_sound_pixels_passes():
    sound = encoded(GRAY, "JPEG")
    corrupt = encoded(GRAY, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\xee" * 40)
    assert len(corrupt) > len(sound)
    np.testing.assert_array_equal(read_gray(corrupt), read_gray(sound))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"path,label\n",
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff",
        encoded(GRAY, "GIF"),
        encoded(GRAY, "BMP"),
        encoded(GRAY, "TIFF"),
    ],
)
def test_other_files_are_refused(content: bytes):
    with pytest.raises(ValueError, match="not a PNG or JPEG image"):
        read_gray(content)


@pytest.mark.parametrize("side", [9_000, 12_000, 60_000, 2**31 - 1])
def test_bombs_are_refused_before_they_are_decoded(side: int):
    assert side * side > MAX_PIXELS
    with pytest.raises(ValueError, match=r"pixels|unreadable image"):
        read_gray(png(side, side, 8, 0, b""))


@pytest.mark.parametrize(("width", "height"), [(0, 5), (5, 0)])
def test_an_image_without_pixels_is_refused(width: int, height: int):
    with pytest.raises(ValueError, match="image"):
        read_gray(png(width, height, 8, 0, b"\0" * height))


def radiograph(width: int = 96, height: int = 80) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, 8, (height, width))
    return (128 + 80 * np.outer(np.cos(np.arange(height) / 7), np.sin(np.arange(width) / 9)) + noise).clip(0, 255)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_damage_raises_value_error_and_nothing_else(kind: str):
    content, rng = encoded(radiograph().astype(np.uint8), kind), random.Random(1)
    sound = read_gray(content)
    for _ in range(150):
        with pytest.raises(ValueError, match="image"):
            read_gray(content[: rng.randrange(len(content) - 16)])
    for _ in range(150):
        damaged = bytearray(content)
        for _ in range(rng.choice([1, 1, 4])):
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        try:
            gray = read_gray(bytes(damaged))
        except ValueError:
            continue
        if kind == "PNG":  # every chunk has its checksum: what passes has its pixels whole
            np.testing.assert_array_equal(gray, sound)
        assert gray.dtype == np.uint8
        assert gray.ndim == 2


@pytest.mark.skipif(not FRACATLAS.is_dir(), reason="the FracAtlas sample does not lie beside the repository")
def test_the_damaged_files_of_fracatlas_are_found_and_no_others():
    damaged = {}
    for path in sorted(FRACATLAS.glob("images/*/*.jpg")):
        try:
            read_gray(path.read_bytes())
        except ValueError as error:
            damaged[int(path.stem.removeprefix("IMG"))] = str(error)
    assert sorted(damaged) == [4119, 4120, 4121, 4122, 4123, 4129, 4226, 4227]
    assert all("truncated" in reason for reason in damaged.values())


def gray(*rows: list[int]) -> np.ndarray:
    return np.array(rows, dtype=np.uint8)


def test_shrinking_averages_areas():
    small = resize_gray(gray([0, 4, 100, 100], [8, 12, 100, 104], [50, 50, 0, 0], [50, 50, 255, 1]), 2)
    assert small.tolist() == [[6, 101], [50, 64]]


def test_shrinking_by_a_fraction_weighs_the_cut_pixels():
    # Three pixels to two: (a + b / 2) / 1.5 and (b / 2 + c) / 1.5.
    assert resize_gray(gray([0, 90, 180], [0, 90, 180], [0, 90, 180]), 2).tolist() == [[30, 150]] * 2


def test_enlarging_interpolates_between_pixel_centres():
    # Centres of the four lie at -0.25, 0.25, 0.75 and 1.25 of the two; outside of them the edge is repeated.
    large = resize_gray(gray([0, 100], [0, 100]), 4)
    assert large.tolist() == [[0, 25, 75, 100]] * 4


def test_one_axis_shrinks_and_the_other_grows():
    tall = gray([0, 100], [20, 120], [40, 140], [60, 160], [0, 0], [0, 0], [200, 200], [100, 100])
    expected = [[10, 35, 85, 110], [50, 75, 125, 150], [0, 0, 0, 0], [150, 150, 150, 150]]
    assert resize_gray(tall, 4).tolist() == expected
    assert resize_gray(np.ascontiguousarray(tall.T), 4).tolist() == np.array(expected).T.tolist()


def test_the_right_size_is_left_alone():
    np.testing.assert_array_equal(resize_gray(GRAY[:5], 5), GRAY[:5])


@pytest.mark.parametrize("shape", [(1, 1), (1, 1000), (1000, 1), (512, 108), (320, 100), (100, 320)])
def test_any_shape_becomes_the_square_and_keeps_a_flat_image_flat(shape: tuple[int, int]):
    square = resize_gray(np.full(shape, 77, dtype=np.uint8), 320)
    assert square.shape == (320, 320)
    assert square.dtype == np.uint8
    assert (square == 77).all()
