"""Media behind http(s) URLs, fetched before anything is prepared: many at once, off the event loop.

A URL that cannot be had is an error of its side alone. What may be fetched is actors/web.py's rule.
"""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from actors.data import Content, ImageSource
from actors.errors import MediaForbidden, MediaTooLarge, RerankError
from actors.web import WebMedia, WebReader

Fetched = dict[str, bytes | RerankError]


class MediaFetcher:
    """web None: nothing is fetched. max_bytes: of one request's media together."""

    def __init__(self, web: WebMedia | None, num_threads: int, max_bytes: int) -> None:
        self._reader = WebReader(web) if web else None
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="fetch")
        self._max_bytes = max_bytes

    async def fetch(self, sides: Sequence[Content | RerankError]) -> list[Content | RerankError]:
        """The sides with bytes in the place of URLs; each distinct URL is fetched once."""
        urls = dict.fromkeys(url for side in sides for url in _urls(side))
        if not urls:
            return list(sides)
        loop = asyncio.get_running_loop()
        tasks = [loop.run_in_executor(self._threads, self._read, url) for url in urls]
        try:
            fetched = dict(zip(urls, await asyncio.gather(*tasks), strict=True))
        except asyncio.CancelledError:
            for task in tasks:
                task.cancel()
            raise
        self._bound(fetched)
        return [_filled(side, fetched) for side in sides]

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _read(self, url: str) -> bytes | RerankError:
        if self._reader is None:
            return MediaForbidden("media over http(s) are not allowed on this server")
        try:
            return self._reader.read(url)
        except RerankError as error:
            return error.with_traceback(None)

    def _bound(self, fetched: Fetched) -> None:
        """What comes after the request's bytes are used up is an error."""
        left = self._max_bytes
        for url, data in fetched.items():
            if isinstance(data, bytes) and (left := left - len(data)) < 0:
                fetched[url] = MediaTooLarge(
                    f"the request's media are over the limit of {self._max_bytes} bytes together"
                )


def _urls(side: Content | RerankError) -> list[str]:
    if isinstance(side, RerankError):
        return []
    sources = [*side.images]
    for video in side.videos:
        sources += video.frames or (video.source,)  # type: ignore[arg-type]
    return [source for source in sources if isinstance(source, str)]


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
