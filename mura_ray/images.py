"""Bytes of an image file to 8-bit gray pixels, and to the network's input size. Training and serving share these."""

import io

import cv2
import numpy as np
from PIL import Image

FORMATS = ("PNG", "JPEG")
MAX_PIXELS = 80_000_000
"""Larger images are refused before they are decoded: the largest detectors have some 20 million pixels."""


def read_gray(content: bytes) -> np.ndarray:
    """Decodes a PNG or JPEG file.

    Colour is reduced by ITU-R 601 luma, 16-bit gray to its upper 8 bits, transparency is dropped; an orientation tag
    is ignored, so that pixels keep the coordinates of annotations. Damage to what is no pixel of a JPEG file (a corrupt
    EXIF block) passes by. A JPEG file carries no checksum: of damage inside its pixels only a missing end is found.

    Args:
        content: the whole file.

    Returns:
        uint8 [H, W].

    Raises:
        ValueError: not a whole PNG or JPEG image, or larger than `MAX_PIXELS`.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels; the limit is {MAX_PIXELS:,}")
            image.verify()  # every checksum of a PNG file, which decoding does not look at; leaves the image unusable
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            image.load()
            return _to_gray(image)
    except Image.UnidentifiedImageError as error:
        raise ValueError(f"not a PNG or JPEG image (first bytes: {content[:8].hex(' ') or 'none'})") from error
    except MemoryError:
        raise
    except Exception as error:  # Pillow answers damage with whatever its parsers stumble over
        raise ValueError(f"unreadable image: {error}") from error


def _to_gray(image: Image.Image) -> np.ndarray:
    if image.mode == "I;16":
        return (np.asarray(image) >> 8).astype(np.uint8)
    if image.mode == "P":
        image = image.convert("RGBA")  # from here transparency can be dropped; a palette may mix it into the colours
    if image.mode != "L":
        image = image.convert("RGB").convert("L")
    return np.array(image, dtype=np.uint8)


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
