"""PNG and JPEG files whose structure is a trap, and those that only look like one."""

import io
import re
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mura_ray import images
from mura_ray.dicom import read_radiograph
from mura_ray.image_files import MAX_SCANS, pixel_parts
from mura_ray.images import MAX_PIXELS, MAX_SCANNED_PIXELS, read_gray

NOISE = np.random.default_rng(0).integers(0, 256, (80, 96), dtype=np.uint8)
SIDE = 64


def encoded(pixels: np.ndarray = NOISE, kind: str = "JPEG", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def segment(marker: int, data: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def with_chunks(*chunks: bytes) -> bytes:
    """A PNG file with these behind its header."""
    content = encoded(kind="PNG")
    return content[:33] + b"".join(chunks) + content[33:]


def with_segments(*segments: bytes, content: bytes | None = None) -> bytes:
    """A JPEG file that begins with these."""
    content = content or encoded()
    return content[:2] + b"".join(segments) + content[2:]


def with_scans(number: int) -> bytes:
    """A progressive JPEG file of so many scans, the last of them over and over."""
    content = encoded(NOISE[:SIDE, :SIDE], progressive=True)
    starts = [found.start() for found in re.finditer(rb"\xff\xda", content)]
    return content[:-2] + content[starts[-1] : -2] * (number - len(starts)) + content[-2:]


class TestScans:
    def test_a_progressive_file_is_read_as_ever(self):
        content = encoded(progressive=True, quality=95)
        assert content.count(b"\xff\xda") > 5
        np.testing.assert_array_equal(read_gray(content), np.asarray(Image.open(io.BytesIO(content))))

    def test_too_many_are_refused_before_they_are_decoded(self, monkeypatch: pytest.MonkeyPatch):
        assert read_gray(with_scans(MAX_SCANS)).shape == (SIDE, SIDE)
        monkeypatch.setattr(images, "Image", None)
        with pytest.raises(ValueError, match=rf"more than {MAX_SCANS} scans: save it as baseline"):
            pixel_parts(with_scans(MAX_SCANS + 1))

    @pytest.mark.parametrize("read", [read_gray, read_radiograph])
    def test_too_many_are_refused_wherever_a_file_is_read(self, read):
        with pytest.raises(ValueError, match=rf"more than {MAX_SCANS} scans"):
            read(with_scans(MAX_SCANS + 1))

    def test_of_a_large_image_fewer_are_allowed(self, monkeypatch: pytest.MonkeyPatch):
        assert MAX_SCANNED_PIXELS >= 10 * MAX_PIXELS
        monkeypatch.setattr(images, "MAX_SCANNED_PIXELS", 20 * SIDE * SIDE)
        assert read_gray(with_scans(20)).shape == (SIDE, SIDE)
        with pytest.raises(ValueError, match=rf"21 scans of {SIDE} x {SIDE} pixels; the limit is 81,920 in all scans"):
            read_gray(with_scans(21))

    def test_of_a_thumbnail_do_not_count(self):
        trap = b"\xff\xda\0\x08\1\1\0\0\0\0" * 200
        content = with_segments(*(segment(marker, trap) for marker in (0xE0, 0xE1, 0xE2, 0xED, 0xFE)))
        assert pixel_parts(content)[1] == 1
        np.testing.assert_array_equal(read_gray(content), read_gray(encoded()))


class TestJpeg:
    @pytest.mark.parametrize("options", [{"restart_marker_blocks": 1}, {"quality": 100}, {"optimize": True}])
    def test_pixels_are_those_that_pillow_reads_from_the_whole_file(self, options: dict[str, Any]):
        content = encoded(**options)
        np.testing.assert_array_equal(read_gray(content), np.asarray(Image.open(io.BytesIO(content))))

    def test_stuffed_bytes_and_restarts_are_no_markers(self):
        content = encoded(quality=100, restart_marker_blocks=1)
        assert b"\xff\0" in content
        assert b"\xff\xd3" in content
        parts, num_scans = pixel_parts(content)
        assert (parts, num_scans) == (content, 1)

    def test_fill_bytes_may_be_before_a_marker(self):
        content = encoded()
        filled = content.replace(b"\xff\xdb", b"\xff\xff\xff\xdb").replace(b"\xff\xda", b"\xff\xff\xda")
        assert len(filled) > len(content)
        np.testing.assert_array_equal(read_gray(filled), read_gray(content))

    def test_the_decoder_gets_no_metadata_but_what_says_the_colours(self):
        cmyk = Image.new("CMYK", (16, 8), (0, 0, 0, 155))
        file = io.BytesIO()
        cmyk.save(file, "JPEG", quality=95)
        named = [segment(marker, b"MILLER^ANNA") for marker in (0xE1, 0xE2, 0xED, 0xEF, 0xFE)]
        content = with_segments(*named, content=file.getvalue())
        parts, _ = pixel_parts(content)
        assert b"MILLER" not in parts
        assert b"Adobe" in parts
        np.testing.assert_array_equal(read_gray(content), read_gray(file.getvalue()))

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (with_segments(segment(0xFE, b"") * 100_000), "more than 100,000 segments"),
            (with_segments(segment(0xDB, bytes(65 * 1000)) * 5), "more than 262,144 bytes of tables"),
            (encoded()[:40], "truncated"),
        ],
        ids=["segments", "tables", "a segment cut off"],
    )
    def test_is_bounded_in_its_parts(self, content: bytes, words: str):
        with pytest.raises(ValueError, match=words):
            read_gray(content)

    @pytest.mark.parametrize("run", [b"\xff", b"\xff\0", b"\xff\xd0", b"\xff\x01", b"\xda"])
    def test_runs_of_what_is_no_segment_pass(self, run: bytes):
        content = encoded()
        for place in (20, len(content) - 2):  # behind the first segment, and before the end
            padded = content[:place] + run * 30_000 + content[place:]
            np.testing.assert_array_equal(read_gray(padded), read_gray(content))


class TestPng:
    def test_the_decoder_gets_no_metadata(self):
        large = zlib.compress(bytes(2**21))  # more than Pillow inflates
        content = with_chunks(chunk(b"iCCP", b"name\0\0" + large), chunk(b"zTXt", b"name\0\0" + large))
        np.testing.assert_array_equal(read_gray(content), NOISE)

    def test_too_many_chunks_are_refused(self):
        with pytest.raises(ValueError, match="more than 100,000 chunks"):
            read_gray(with_chunks(chunk(b"tEXt", b"") * 100_000))

    def test_a_wrong_checksum_is_found_in_metadata_too(self):
        content = with_chunks(chunk(b"tEXt", b"name\0value"))
        assert read_gray(content).shape == NOISE.shape
        with pytest.raises(ValueError, match="checksum of its chunk b'tEXt' is wrong"):
            read_gray(content.replace(b"value", b"Value"))

    def test_an_animation_is_refused(self):
        file = io.BytesIO()
        frames = [Image.fromarray(NOISE), Image.fromarray(255 - NOISE)]
        frames[0].save(file, "PNG", save_all=True, append_images=frames[1:])
        with pytest.raises(ValueError, match="is an animation: send single frames"):
            read_gray(file.getvalue())


FOLLOWERS = {
    "zip": b"PK\x03\x04" + bytes(30),
    "PDF": b"%PDF-1.7\n",
    "HTML": b"<!DOCTYPE html><script>",
    "PHP": b"<?php",
    "RAR": b"Rar!\x1a\x07\x01\0",
    "7z": b"7z\xbc\xaf\x27\x1c",
}


class TestTwoFilesInOne:
    @pytest.mark.parametrize("between", [b"", bytes(700), b"\r\n", b"rest of a disk"])
    @pytest.mark.parametrize("follower", FOLLOWERS)
    @pytest.mark.parametrize("kind", ["PNG", "JPEG"])
    def test_are_refused_with_the_kind_of_the_second(self, kind: str, follower: str, between: bytes):
        content = encoded(kind=kind) + between + FOLLOWERS[follower]
        with pytest.raises(ValueError, match=f"a {follower} file follows the image in the same file: send the image"):
            read_radiograph(content)

    @pytest.mark.parametrize("rest", [b"", bytes(5000), b" \r\n", b"\xff\xff", bytes(600) + NOISE.tobytes()[:1024]])
    @pytest.mark.parametrize("kind", ["PNG", "JPEG"])
    def test_what_real_files_end_with_is_let_pass(self, kind: str, rest: bytes):
        content = encoded(kind=kind)
        np.testing.assert_array_equal(read_gray(content + rest), read_gray(content))

    def test_of_several_jpeg_images_the_first_is_read(self):
        file = io.BytesIO()
        Image.fromarray(NOISE).save(file, "MPO", save_all=True, append_images=[Image.fromarray(255 - NOISE)])
        assert file.getvalue().count(b"\xff\xd8\xff") == 2
        np.testing.assert_array_equal(read_gray(file.getvalue()), read_gray(encoded()))
        with pytest.raises(ValueError, match="a zip file follows"):
            read_gray(file.getvalue() + FOLLOWERS["zip"])

    def test_pixels_that_look_like_one_are_none(self):
        row = b"%PDF-<html>PK\x03\x04"
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", len(row), 1, 8, 0, 0, 0, 0))
        content = encoded(kind="PNG")[:8] + header + chunk(b"IDAT", zlib.compress(b"\0" + row, 0)) + chunk(b"IEND", b"")
        assert row in content
        assert read_gray(content).tobytes() == row


def test_another_file_comes_back_as_it_is():
    assert pixel_parts(b"GIF89a") == (b"GIF89a", 1)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_file_without_metadata_comes_back_as_it_is_as_far_as_it_goes(kind: str):
    content = encoded(kind=kind)
    for length in (len(content), len(content) - 100):
        assert pixel_parts(content[:length]) == (content[:length], 1)
