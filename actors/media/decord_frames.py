"""The frames of an opened video file as decord gives them, the official scorer's reader.

Its wheel carries FFmpeg 4.1.6, so PyAV looks at the file first: what it would not open is not
handed on. Knows nothing of sampling rules.
"""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shardrank.actors.errors import VideoDecodeError
from shardrank.actors.media.video_frames import (
    PIXELS_AT_ONCE,
    Progress,
    check_codec,
    check_size,
    open_container,
    video_stream,
)


class DecordVideo:
    """A file's frames by decord's own count. Raises ImportError without decord, or without PyAV."""

    def __init__(self, source: bytes | Path, progress: Progress = lambda: None) -> None:
        import decord

        with open_container(source) as container:
            video_stream(container)
            for stream in container.streams.video:
                check_codec(stream)
        self._progress = progress
        opened = io.BytesIO(source) if isinstance(source, bytes) else str(source.absolute())
        try:
            self._reader: Any = decord.VideoReader(opened, num_threads=1)
        except Exception as error:  # its text is a C++ stack
            raise VideoDecodeError("decord does not open it") from error
        self.num_frames = len(self._reader)
        self.fps = float(self._reader.get_avg_fps())

    def frames(self, indices: Sequence[int], max_pixels: int) -> Iterator[np.ndarray]:
        """(t, H, W, 3) uint8, some frames after the other, so that not all are held at once."""
        height, width, _ = self._reader[0].shape
        check_size(height, width, max_pixels)
        at_once = max(1, PIXELS_AT_ONCE // (height * width))
        for start in range(0, len(indices), at_once):
            self._progress()
            yield self._batch(list(indices[start : start + at_once]))
            if start + at_once < len(indices):
                self._reader.seek(0)  # or it would decode ahead, without bound, until it is asked

    def _batch(self, indices: list[int]) -> np.ndarray:
        try:
            return self._reader.get_batch(indices).asnumpy()
        except Exception as error:  # its text is a C++ stack
            raise VideoDecodeError("decord does not decode one of its frames") from error
