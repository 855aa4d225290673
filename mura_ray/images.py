"""Bytes of an image file to 8-bit gray pixels, and to the network's input size. Training and serving share these."""

import io

import cv2
import numpy as np
from PIL import Image

from mura_ray.image_files import pixel_parts

FORMATS = ("PNG", "JPEG")
MAX_PIXELS = 80_000_000
"""Larger images are refused before they are decoded: the largest detectors have some 20 million pixels."""

MAX_SCANNED_PIXELS = 10 * MAX_PIXELS
"""Pixels times scans of a JPEG file: a progressive one of the largest size has 10, and each costs some ns a pixel."""

_COLOUR_LEVELS = 16
_COLOUR_SHARE = 0.01
"""A picture is in colour if red, green and blue are farther apart in more of its area: a coloured mark is smaller."""


def read_gray(content: bytes) -> np.ndarray:
    """Decodes a PNG or JPEG file, as `read_picture`.

    Returns:
        uint8 [H, W].
    """
    return read_picture(content)[0]


def read_picture(content: bytes) -> tuple[np.ndarray, bool]:
    """Decodes a PNG or JPEG file.

    Colour is reduced by ITU-R 601 luma, 16-bit gray to its upper 8 bits, transparency is dropped; an orientation tag
    is ignored, so that pixels keep the coordinates of annotations. Damage to what is no pixel of a JPEG file (a corrupt
    EXIF block) passes by. A JPEG file carries no checksum: of damage inside its pixels only a missing end is found.
    Where one file has several JPEG images (MPO), the first is read.

    Args:
        content: the whole file.

    Returns:
        uint8 [H, W]; whether the picture was in colour.

    Raises:
        ValueError: not a whole PNG or JPEG image, larger than `MAX_PIXELS` or with too many scans, or another file too.
    """
    try:
        parts, num_scans = pixel_parts(content)
        with Image.open(io.BytesIO(parts), formats=FORMATS) as image:
            _check_size(image.width, image.height, num_scans)
            image.verify()  # that a PNG file has its end, which decoding does not look at; leaves the image unusable
        with Image.open(io.BytesIO(parts), formats=FORMATS) as image:
            image.load()
            return _to_gray(image)
    except Image.UnidentifiedImageError as error:
        raise ValueError(f"not a PNG or JPEG image (first bytes: {content[:8].hex(' ') or 'none'})") from error
    except MemoryError:
        raise
    except Exception as error:  # Pillow answers damage with whatever its parsers stumble over
        raise ValueError(f"unreadable image: {error}") from error


def _check_size(width: int, height: int, num_scans: int) -> None:
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width} x {height} pixels; the limit is {MAX_PIXELS:,}")
    if width * height * num_scans > MAX_SCANNED_PIXELS:
        limit = f"the limit is {MAX_SCANNED_PIXELS:,} in all scans"
        raise ValueError(f"{num_scans} scans of {width} x {height} pixels; {limit}; save it as baseline JPEG")


def _to_gray(image: Image.Image) -> tuple[np.ndarray, bool]:
    if image.mode == "I;16":
        return (np.asarray(image) >> 8).astype(np.uint8), False
    if image.mode == "L":
        return np.array(image, dtype=np.uint8), False
    image = image.convert("RGB")
    return np.array(image.convert("L"), dtype=np.uint8), _is_colour(image)


def _is_colour(image: Image.Image) -> bool:
    """Whether an RGB image is more than gray with some noise or a mark in it, by the means of its areas."""
    areas = np.asarray(image.resize((64, 64), Image.Resampling.BOX))
    return bool((np.ptp(areas, axis=-1) > _COLOUR_LEVELS).mean() > _COLOUR_SHARE)


def resize_gray(gray: np.ndarray, size: int) -> np.ndarray:
    """Scales to a square, without keeping the aspect ratio (paper, section 3.1).

    Each axis is averaged over areas where it shrinks and interpolated linearly where it grows.

    Args:
        gray: uint8 [H, W].
        size: side of the result in pixels.

    Returns:
        uint8 [size, size].
    """
    height, width = gray.shape
    vertical = cv2.INTER_AREA if height >= size else cv2.INTER_LINEAR
    horizontal = cv2.INTER_AREA if width >= size else cv2.INTER_LINEAR
    if vertical == horizontal:
        return cv2.resize(gray, (size, size), interpolation=vertical)
    return cv2.resize(cv2.resize(gray, (width, size), interpolation=vertical), (size, size), interpolation=horizontal)
