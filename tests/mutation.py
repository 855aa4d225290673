"""Files that are nearly radiographs: sound ones, damaged as disks, networks and enemies damage them."""

import random
import struct

KINDS = ("bits", "bytes", "cut", "hole", "twice", "length", "splice", "noise")


def mutated(content: bytes, other: bytes, rng: random.Random) -> bytes:
    """A damaged copy.

    Args:
        content: the sound file.
        other: a file of another kind, for splicing.
        rng: draws what happens and where; half of all damage hits the first two kilobytes, where headers are.
    """
    damaged = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        kind, place = rng.choice(KINDS), _place(len(damaged), rng)
        if kind == "bits":
            damaged[place] ^= 1 << rng.randrange(8)
        elif kind == "bytes":
            end = min(len(damaged), place + rng.randint(1, 64))
            damaged[place:end] = rng.randbytes(end - place)
        elif kind == "cut":
            del damaged[max(1, place) :]
        elif kind == "hole":
            del damaged[place : place + rng.randint(1, 200)]
        elif kind == "twice":
            damaged[place:place] = damaged[place : place + rng.randint(1, 2000)]
        elif kind == "length":
            value = rng.choice((0, 1, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF))
            damaged[place : place + 4] = struct.pack(rng.choice("<>") + "I", value)
        elif kind == "splice":
            start = rng.randrange(len(other))
            damaged[place:place] = other[start : start + rng.randint(1, 5000)]
        else:
            damaged[place:] = rng.randbytes(min(5000, len(damaged) - place))
        if not damaged:
            damaged = bytearray(b"\0")
    return bytes(damaged)


def _place(length: int, rng: random.Random) -> int:
    return rng.randrange(min(length, 2048)) if rng.random() < 0.5 else rng.randrange(length)
