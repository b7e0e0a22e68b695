"""Which of the packages that decode video files are installed. Imports none of them."""

from importlib.util import find_spec

from shardrank.actors.config import VideoReader


def missing_reader(decoder: VideoReader) -> str | None:
    """The sentence that says what is to be installed; None where all is there."""
    if find_spec("av") is None:
        return "reading video files needs PyAV: pip install av"
    if decoder == "decord" and find_spec("decord") is None:
        return "--video-reader decord needs decord (x86-64 alone): pip install 'shardrank[decord]'"
    return None
