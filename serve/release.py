"""Which ensemble answers, and which candidate predicts in its shadow: changed while studies are answered."""

import asyncio
import logging
from collections.abc import Callable

import anyio.to_thread
from pydantic import Field

from mura_ray.config import Settings
from serve.health import Passes
from serve.model_card import read_evaluations
from serve.prediction import Answers, Predictor

_logger = logging.getLogger(__name__)


class Release(Settings):
    """The deployment's `user_config`."""

    ensemble: str | None = Field(default=None, description="URI; None: the one that the application was built with")
    shadow: str | None = Field(default=None, description="URI of a candidate; None: there is none")


class Releases:
    """Puts one release in the place of another."""

    def __init__(
        self, answers: Answers, load: Callable[[str], Predictor], built_with: str, answering: str, passes: Passes
    ) -> None:
        """Takes what answers and what loads an ensemble.

        Args:
            answers: has the ensemble that answers first.
            load: loads the ensemble at a URI.
            built_with: URI of the ensemble of a release that names none.
            answering: URI of the ensemble that answers first.
            passes: where those of each ensemble that answers are counted.
        """
        self._answers = answers
        self._load = load
        self._built_with = built_with
        self._answering = answering
        self._passes = passes
        self._changes: set[asyncio.Task[None]] = set()
        self._one_after_another = asyncio.Lock()

    async def change(self, release: Release) -> None:
        """Loads the release, in a thread, and has it answer from then on.

        Raises:
            ValueError: it cannot be loaded; the one before it stays.
        """
        async with self._one_after_another:
            uri = release.ensemble or self._built_with
            candidate = None if release.shadow is None else await anyio.to_thread.run_sync(self._load, release.shadow)
            if uri != self._answering:
                predictor = await anyio.to_thread.run_sync(self._load, uri)
                evaluations = await anyio.to_thread.run_sync(read_evaluations, uri, predictor.description.id)
                self._answers.release(self._passes.watched(predictor), evaluations)
                self._answering = uri
            self._answers.show_to(candidate)

    def change_meanwhile(self, release: Release) -> None:
        """The same, later, while studies are answered; a release that cannot be loaded is refused in the log."""
        change = asyncio.create_task(self._change_or_refuse(release))
        self._changes.add(change)  # the event loop itself holds tasks weakly
        change.add_done_callback(self._changes.discard)

    async def _change_or_refuse(self, release: Release) -> None:
        try:
            await self.change(release)
        except Exception as error:  # whatever it is, the ensemble before it answers on
            _logger.error("the release (%s) is refused, the one before it stays: %s", release, error)
