"""Into how many shards a split is cut. Knows no FFCV, whose import costs 300 MB and seconds: drivers only plan."""

PAGE_BYTES = 2 * 2**20
"""FFCV's least page, because the first and the last page of a file are always whole."""

_PAGES_PER_SHARD = 62  # with the header's page and the tables just below 128 MiB


def num_shards(num_images: int, image_size: int) -> int:
    """Into how many shards of near-equal size a split is cut: each of 64 to 128 MiB, or a single smaller one."""
    images_per_shard = _PAGES_PER_SHARD * (PAGE_BYTES // image_size**2)
    return -(-num_images // images_per_shard)
