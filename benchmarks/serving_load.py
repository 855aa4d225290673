"""Clients of a server, in one process that leaves the cores to it: multipart bodies are made once, aiohttp sends them.

Knows nothing of what is compared.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import aiohttp
import numpy as np

BOUNDARY = "benchmark-boundary"
CONTENT_TYPE = f"multipart/form-data; boundary={BOUNDARY}"
PATH = "/v1/studies/predict"


@dataclass
class Load:
    """What clients met.

    Attributes:
        seconds: how long they asked.
        statuses: number of answers by HTTP status; 0 where there was none.
        latencies: of each answer of 200, in seconds, by when it came.
        client_cpu: the clients' share of one core.
    """

    seconds: float = 0.0
    statuses: Counter[int] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)
    client_cpu: float = 0.0

    @property
    def studies_per_s(self) -> float:
        """Answered with 200."""
        return self.statuses[200] / self.seconds

    def quantile(self, share: float) -> float:
        """Of the latencies; NaN where there are none."""
        return float(np.quantile(self.latencies, share)) if self.latencies else float("nan")


def multipart(views: Sequence[bytes]) -> bytes:
    """The body of a request for a study's PNG files."""
    head = 'Content-Disposition: form-data; name="views"; filename="view.png"\r\nContent-Type: image/png\r\n\r\n'
    parts = [f"--{BOUNDARY}\r\n{head}".encode() + view + b"\r\n" for view in views]
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


def closed_loop(
    url: str, bodies: Sequence[bytes], clients: int, seconds: float, token: str | None = None, query: str = ""
) -> Load:
    """So many clients, each with one study at a time; one that was sent away comes again when it was told to."""

    async def scenario(session: aiohttp.ClientSession, load: Load) -> None:
        end = time.perf_counter() + seconds

        async def client(number: int) -> None:
            place = number
            while time.perf_counter() < end:
                wait_s = await _ask(session, url + PATH + query, bodies[place % len(bodies)], load)
                place += clients
                await asyncio.sleep(min(wait_s, max(0.0, end - time.perf_counter())))

        await asyncio.gather(*(client(number) for number in range(clients)))

    return _measured(scenario, token)


def open_loop(
    url: str, bodies: Sequence[bytes], studies_per_s: float, seconds: float, token: str | None = None
) -> Load:
    """Studies at random moments, at this rate, whatever the server does."""

    async def scenario(session: aiohttp.ClientSession, load: Load) -> None:
        rng = random.Random(0)
        at, end = time.perf_counter(), time.perf_counter() + seconds
        asked: set[asyncio.Task[float]] = set()
        while (at := at + rng.expovariate(studies_per_s)) < end:
            await asyncio.sleep(max(0.0, at - time.perf_counter()))
            task = asyncio.create_task(_ask(session, url + PATH, rng.choice(bodies), load))
            asked.add(task)
            task.add_done_callback(asked.discard)
        await asyncio.gather(*asked)

    return _measured(scenario, token)


def _measured(scenario: Callable[[aiohttp.ClientSession, Load], Awaitable[None]], token: str | None) -> Load:
    load = Load()

    async def run() -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        timeout = aiohttp.ClientTimeout(total=300)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(headers=headers, timeout=timeout, connector=connector) as session:
            await scenario(session, load)

    started, used = time.perf_counter(), time.process_time()
    asyncio.run(run())
    load.seconds = time.perf_counter() - started
    load.client_cpu = (time.process_time() - used) / load.seconds
    return load


async def _ask(session: aiohttp.ClientSession, url: str, body: bytes, load: Load) -> float:
    """Sends one study; gives the seconds until the next may be sent."""
    started = time.perf_counter()
    try:
        async with session.post(url, data=body, headers={"Content-Type": CONTENT_TYPE}) as response:
            await response.read()
            status, wait_s = response.status, float(response.headers.get("Retry-After", 0))
    except (aiohttp.ClientError, TimeoutError):
        status, wait_s = 0, 1.0
    load.statuses[status] += 1
    if status == 200:
        load.latencies.append(time.perf_counter() - started)
    return wait_s
