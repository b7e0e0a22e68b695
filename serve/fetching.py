"""Media behind http(s) URLs, fetched before anything is prepared: many at once, off the event loop.

A URL that cannot be had is an error of its side alone. What may be fetched is the rule of
actors/fetch/web.py.
"""

import asyncio
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from shardrank.actors.data import Content, ImageSource
from shardrank.actors.errors import ImageTooLarge, MediaForbidden, MediaTooLarge, RerankError
from shardrank.actors.fetch.web import WebMedia, WebReader
from shardrank.actors.media.images import image_size

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
    """

    def __init__(self, web: WebMedia | None, num_threads: int, max_bytes: int) -> None:
        self._reader = WebReader(web) if web else None
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="fetch")
        self._max_bytes = max_bytes

    async def fetch(self, sides: Sequence[Content | RerankError]) -> list[Content | RerankError]:
        """The sides with bytes in the place of URLs; each distinct URL is fetched once."""
        budget = _Budget(self._max_bytes)
        sides = [_charged(side, budget) for side in sides]
        urls = dict.fromkeys(s for side in sides for s in _sources(side) if isinstance(s, str))
        if not urls:
            return sides
        loop = asyncio.get_running_loop()
        tasks = [loop.run_in_executor(self._threads, self._read, url, budget) for url in urls]
        try:
            fetched = dict(zip(urls, await asyncio.gather(*tasks), strict=True))
        except asyncio.CancelledError:
            for task in tasks:
                task.cancel()
            raise
        return [_filled(side, fetched) for side in sides]

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _read(self, url: str, budget: _Budget) -> bytes | RerankError:
        if self._reader is None:
            return MediaForbidden("media over http(s) are not allowed on this server")
        try:
            budget.take(0)  # once it is used up, nothing more is fetched
            data = self._reader.read(url)
            budget.take(len(data))
            return data
        except RerankError as error:
            return error.with_traceback(None)


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
    """The side, or an error where the bytes that it came with are too many."""
    size = sum(len(each) for each in _sources(side) if isinstance(each, bytes))
    try:
        if size:
            budget.take(size)
    except RerankError as error:
        return error.with_traceback(None)
    return side


def _sources(side: Content | RerankError) -> Iterator[ImageSource]:
    if isinstance(side, RerankError):
        return
    yield from side.images
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

    try:
        return replace(
            side,
            images=tuple(map(bytes_of, side.images)),
            videos=tuple(
                replace(video, frames=tuple(map(bytes_of, video.frames)))
                if video.frames is not None
                else replace(video, source=bytes_of(video.source))  # type: ignore[arg-type]
                for video in side.videos
            ),
        )
    except RerankError as error:
        return error.with_traceback(None)
