"""A file of a multipart request to an `Upload`, its size bounded."""

from fastapi import UploadFile

from serve.limits import Limits
from serve.prediction import Upload
from serve.problems import ProblemError


async def read_upload(upload: UploadFile, limits: Limits) -> Upload:
    """Takes over one view.

    Raises:
        ProblemError: it is larger than a view may be.
    """
    name = upload.filename or "unnamed"
    if (upload.size or 0) > limits.view_bytes:
        detail = f"{name} has {upload.size:,} bytes, the limit is {limits.view_bytes:,}; send it compressed"
        raise ProblemError(413, "view-too-large", "a view is too large", detail, view=name, limit=limits.view_bytes)
    return Upload(name, await upload.read())
