"""What requests with files share: a file to an `Upload`, its size bounded, and what becomes of one that is damaged."""

from fastapi import Query, UploadFile

from serve.decoding import Upload, is_zip
from serve.limits import Limits
from serve.problems import ProblemError

DAMAGED = Query(
    description="a view that cannot be read: the study is refused, or predicted without it and the answer warns of it"
)


async def read_upload(upload: UploadFile, limits: Limits) -> Upload:
    """Takes over one file; a zip may have more bytes than a view.

    Raises:
        ProblemError: it is larger than a view may be.
    """
    name, content = upload.filename or "unnamed", await upload.read()
    if len(content) > limits.view_bytes and not is_zip(content):
        detail = f"{name} has {len(content):,} bytes, the limit is {limits.view_bytes:,}; send it compressed"
        raise ProblemError(413, "view-too-large", "a view is too large", detail, view=name, limit=limits.view_bytes)
    return Upload(name, content)
