"""Media behind http(s) URLs, fetched before anything is prepared: many at once, off the event loop.

A URL that cannot be had is an error of its side alone. What may be fetched is the rule of
actors/fetch/web.py.
"""

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from weakref import WeakValueDictionary

from shardrank.actors.data import Content, ImageSource, PdfPage
from shardrank.actors.errors import ImageTooLarge, MediaForbidden, MediaTooLarge, RerankError
from shardrank.actors.fetch.web import WebMedia, WebReader
from shardrank.actors.media.images import image_size
from shardrank.serve.console import caller
from shardrank.serve.dialects.work import outcome_of

Fetched = dict[str, bytes | RerankError]


class _Budget:
    """Bytes that one request's media may have together, taken from several threads."""

    def __init__(self, num_bytes: int) -> None:
        self._num_bytes = self._left = num_bytes
        self._lock = threading.Lock()

    def take(self, num_bytes: int) -> None:
        """Raises MediaTooLarge on what is over it, and on all that comes after."""
        with self._lock:
            self._left -= num_bytes
            if self._left >= 0:
                return
        raise MediaTooLarge(
            f"the request's media are over the limit of {self._num_bytes:,} bytes together"
        )


class MediaFetcher:
    """web None: nothing is fetched. max_bytes: of one request's media together, those that came
    in its body first.

    Of the threads a caller has a quarter at most, and one of its requests half of that: servers
    that do not answer keep nobody else from fetching.
    """

    def __init__(self, web: WebMedia | None, num_threads: int, max_bytes: int) -> None:
        self._reader = WebReader(web) if web else None
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="fetch")
        self._max_bytes = max_bytes
        self._of_all = asyncio.Semaphore(num_threads)
        self._share = max(1, num_threads // 4)
        self._of_callers: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    async def fetch(
        self, sides: Sequence[Content | RerankError], timeout_s: float
    ) -> list[Content | RerankError]:
        """The sides with bytes in the place of URLs; each distinct URL is fetched once. What does
        not come within timeout_s, all together, is an error.
        """
        budget = _Budget(self._max_bytes)
        sides = [outcome_of(_charged, side, budget) for side in sides]
        urls = dict.fromkeys(s for side in sides for s in _sources(side) if isinstance(s, str))
        if not urls:
            return sides
        ends = time.monotonic() + timeout_s
        of_caller = self._of_callers.setdefault(caller.get(), asyncio.Semaphore(self._share))
        of_request = asyncio.Semaphore(max(1, self._share // 2))

        async def read(url: str) -> bytes | RerankError:
            async with of_request:
                return await self._read_in_thread(url, budget, ends, of_caller)

        found = await asyncio.gather(*map(read, urls))
        fetched = dict(zip(urls, found, strict=True))
        return [outcome_of(_filled, side, fetched) for side in sides]

    async def _read_in_thread(
        self, url: str, budget: _Budget, ends: float, of_caller: asyncio.Semaphore
    ) -> bytes | RerankError:
        """The caller's share is taken until the thread has ended, also of one who has left."""
        loop = asyncio.get_running_loop()

        def free() -> None:
            of_caller.release()
            self._of_all.release()

        await of_caller.acquire()
        try:
            await self._of_all.acquire()
        except BaseException:
            of_caller.release()
            raise
        future = self._threads.submit(outcome_of, self._read, url, budget, ends)
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(free))
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _read(self, url: str, budget: _Budget, ends: float) -> bytes:
        if self._reader is None:
            raise MediaForbidden("media over http(s) are not allowed on this server")
        budget.take(0)  # once it is used up, nothing more is fetched
        data = self._reader.read(url, ends - time.monotonic())
        budget.take(len(data))
        return data


def within_pixels(
    sides: Sequence[Content | RerankError], max_pixels: int
) -> list[Content | RerankError]:
    """The sides in order, an error in the place of one whose images have, with those before it,
    more than max_pixels by their headers: decoding takes a second for 100 million.
    """
    kept: list[Content | RerankError] = []
    left = max_pixels
    for side in sides:
        sizes = (image_size(source) for source in _sources(side) if isinstance(source, bytes))
        left -= sum(size[0] * size[1] for size in sizes if size is not None)
        if left < 0 and isinstance(side, Content) and side.has_media:
            side = ImageTooLarge(
                f"the request's images are over the limit of {max_pixels:,} pixels together"
            )
        kept.append(side)
    return kept


def _charged(side: Content | RerankError, budget: _Budget) -> Content | RerankError:
    """The side. Raises MediaTooLarge where the bytes that it came with are too many."""
    sizes = {id(each): len(each) for each in _sources(side) if isinstance(each, bytes)}
    if size := sum(sizes.values()):
        budget.take(size)
    return side


def _sources(side: Content | RerankError) -> Iterator[ImageSource]:
    """A PDF once for each of its pages."""
    if isinstance(side, RerankError):
        return
    for image in side.images:
        yield image.source if isinstance(image, PdfPage) else image
    for video in side.videos:
        yield from video.frames or (video.source,)  # type: ignore[misc]


def _filled(side: Content | RerankError, fetched: Fetched) -> Content | RerankError:
    if isinstance(side, RerankError) or not side.has_media:
        return side

    def bytes_of(source: ImageSource) -> ImageSource:
        data = fetched[source] if isinstance(source, str) else source
        if isinstance(data, RerankError):
            raise data
        return data

    images = tuple(
        replace(image, source=bytes_of(image.source))  # type: ignore[arg-type]
        if isinstance(image, PdfPage)
        else bytes_of(image)
        for image in side.images
    )
    videos = [
        replace(video, source=bytes_of(video.source))  # type: ignore[arg-type]
        if video.frames is None
        else replace(video, frames=tuple(map(bytes_of, video.frames)))
        for video in side.videos
    ]
    return replace(side, images=images, videos=tuple(videos))
