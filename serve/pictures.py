"""What the viewer paints with: a view's pixels as the network gets them, and the colors of the maps."""

from typing import Annotated, Any

import anyio.to_thread
from anyio import CapacityLimiter
from fastapi import APIRouter, File, Response, UploadFile

from mura_ray.render.overlay import FULL_LOGIT, FULL_OPACITY, encode_png, paint_colors
from serve.decoding import decode_study
from serve.limits import Limits
from serve.problems import ProblemError, problem_responses
from serve.uploads import read_upload

PICTURE_PATH = "/v1/views/picture"


def pictures_router(limits: Limits) -> APIRouter:
    """The routes, for the application to include before it mounts the viewer's files."""
    router = APIRouter()
    one_at_a_time = CapacityLimiter(1)  # predictions need the other cores

    @router.post(
        PICTURE_PATH,
        response_class=Response,
        tags=["prediction"],
        responses={
            200: {
                "description": "8-bit gray, in the view's own size",
                "content": {"image/png": {"schema": {"type": "string", "format": "binary"}}},
            },
            **problem_responses(
                {
                    400: "the multipart body is malformed",
                    408: "the upload took longer than a request may, or came in too slowly",
                    413: "the request or the view is larger than the server takes",
                    415: "the body is not multipart/form-data",
                    422: "the view cannot be read, or is missing",
                    429: "too many requests wait; Retry-After says when to send it again",
                    500: "a fault of the server",
                }
            ),
        },
    )
    async def picture(
        view: Annotated[UploadFile, File(description="one radiograph, in any form that a prediction takes")],
    ) -> Response:
        """A view's pixels before they are scaled for the network: what a 16-bit or DICOM file was reduced to."""
        upload = await read_upload(view, limits)

        def draw() -> bytes:
            views = decode_study([upload], None, limits).views
            if len(views) > 1:
                detail = f"{upload.name} holds {len(views)} views; send one"
                raise ProblemError(422, "several-views", "a picture is of one view", detail, view=upload.name)
            return encode_png(views[0].gray, compress_level=1)

        content = await anyio.to_thread.run_sync(draw, limiter=one_at_a_time)
        return Response(content, media_type="image/png")

    @router.get("/viewer/overlay.json", include_in_schema=False)
    async def overlay() -> dict[str, Any]:
        """The scale and the colors of `mura_ray.render.overlay`, so that the viewer paints maps the same."""
        return {"full_logit": FULL_LOGIT, "full_opacity": FULL_OPACITY, "colors": paint_colors().tolist()}

    return router
