"""The CPU half: candidate sets, or any pairs, to token ids and uint8 pixels.

Decodes and resizes media, builds and tokenises prompts. Bad data becomes that document's error;
knows nothing about the model.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from hashlib import blake2b

import numpy as np
from PIL import Image as PILImage

from shardrank.actors.config import PIXELS_PER_TOKEN, QueryOptions, RerankerConfig
from shardrank.actors.data import CandidateSet, Content, ImageSource, PdfPage, Video
from shardrank.actors.errors import (
    EmptyDocument,
    EmptyQuery,
    InvalidContent,
    RerankError,
    TextTooLarge,
    Unexpected,
)
from shardrank.actors.families.choice import family_of
from shardrank.actors.families.family import Role, Side, VisualSpan
from shardrank.actors.fetch.reader import MediaReader
from shardrank.actors.lru import LRU
from shardrank.actors.media.images import (
    Permit,
    chosen_frames,
    image_size,
    load_image,
    permit_all,
)
from shardrank.actors.media.pixels import (
    TEMPORAL_PATCH_SIZE,
    check_tokens,
    frame_list_pixels,
    image_pixels,
    image_tokens,
    merged_grid,
)
from shardrank.actors.media.video_process import VideoProcesses
from shardrank.actors.model.checkpoint import resolve_checkpoint
from shardrank.actors.prepared import PreparedPair, PreparedSet, Visual, VisualTable
from shardrank.actors.prompt import PromptEncoder
from shardrank.actors.sides import OpenQuery, OpenSide, ReadSide, Watch

FRAME_LIST_FPS = 2.0
NO_OPTIONS = QueryOptions()
_PIXEL_CACHE_BYTES = 256 << 20


class Preprocessor:
    """Prepares candidate sets with a checkpoint's tokenizer; safe to call from several threads,
    but for a PIL image that two of them share (Pillow reads its file when it is first used).

    Raises ValueError on a bad checkpoint.
    """

    def __init__(self, config: RerankerConfig) -> None:
        checkpoint = resolve_checkpoint(config, weights=False)
        self.config = config.resolve(checkpoint)
        self.family = family_of(checkpoint, config.task)
        self._encoder = PromptEncoder(
            checkpoint / "tokenizer.json", config.special_tokens == "neutralize", self.family
        )
        self._reader = MediaReader(config.media_root, config.web_media, config.local_media)
        self.videos = VideoProcesses(decoder=config.video_reader)
        self._pixels: LRU[tuple[bytes, QueryOptions], np.ndarray] = LRU(_PIXEL_CACHE_BYTES)

    def prepare(self, candidate_set: CandidateSet) -> PreparedSet:
        """Never raises for bad data: a document that cannot be scored holds its RerankError."""
        query = self.open_query(
            candidate_set.query, candidate_set.instruction, candidate_set.options
        )
        return self.prepare_pairs(
            (query, self.open_document(document, candidate_set.name_of(index)))
            for index, document in enumerate(candidate_set.documents)
        )

    def open_query(
        self,
        query: Content | RerankError,
        instruction: str | None = None,
        options: QueryOptions = NO_OPTIONS,
        watch: Watch = nullcontext,
        permit: Permit = permit_all,
        role: Role | None = None,
    ) -> OpenQuery:
        """A query for any number of pairs; nothing is read before its first one. For an embedder
        what its texts, which are of the given role or the configured one, are embedded with: itself
        is not read.
        """
        embedding = self.config.embedding
        role = role or ("query" if embedding is None else embedding.role)
        return self.open_text(OpenSide(query, "query", watch, permit), role, instruction, options)

    def open_text(
        self,
        side: OpenSide,
        role: Role,
        instruction: str | None = None,
        options: QueryOptions = NO_OPTIONS,
    ) -> OpenQuery:
        """A query or document with its instruction, as an embedder has it."""
        fitting = self._options(options)
        default = self.config.instruction
        assert default is not None
        if isinstance(instruction, str | None):  # nothing has parsed it before
            instruction = self.family.instructed(instruction, default, role)
        return OpenQuery(
            side,
            instruction,
            fitting,
            NO_OPTIONS if isinstance(fitting, RerankError) else replace(fitting, max_length=None),
        )

    def open_document(
        self,
        document: Content | RerankError,
        name: str = "document",
        watch: Watch = nullcontext,
        permit: Permit = permit_all,
    ) -> OpenSide:
        """A document for any number of pairs: it is fetched, decoded and resized once for all
        of them whose queries have the same options. `name` is what messages call it.
        """
        return OpenSide(document, name, watch, permit)

    def text_of(self, ids: Sequence[int]) -> str:
        """The text that token ids spell. Raises ValueError for one that no token has."""
        return self._encoder.text_of(ids)

    def prepare_pairs(self, pairs: Iterable[tuple[OpenQuery, OpenSide]]) -> PreparedSet:
        """Any pairs as one set, in order; they may share a query, a document, both or neither. For
        an embedder the document alone.

        Never raises for bad data, as `prepare`.
        """
        if self.family.task == "embed":
            return self._prepared((query, (document,)) for query, document in pairs)
        return self._prepared((query, (query.side, document)) for query, document in pairs)

    def prepare_texts(self, texts: Iterable[OpenQuery]) -> PreparedSet:
        """Queries or documents, each alone, for an embedder. Never raises for bad data."""
        return self._prepared((text, (text.side,)) for text in texts)

    def _prepared(self, asked: Iterable[tuple[OpenQuery, tuple[OpenSide, ...]]]) -> PreparedSet:
        visuals = VisualTable()
        prepared: list[PreparedPair | RerankError] = []
        for query, sides in asked:
            mark = len(visuals)
            try:
                prepared.append(self._encoded(query, sides, visuals))
                continue
            except RerankError as error:
                prepared.append(error)
            except Exception as error:
                prepared.append(Unexpected.of(error, f"preparing the {sides[-1].field}"))
            visuals.forget_after(mark)
        return PreparedSet(tuple(prepared), visuals.visuals)

    def _options(self, own: QueryOptions) -> QueryOptions | RerankError:
        """The query's own over the configured ones, with which they may not fit together."""
        try:
            return own.over(self.config.options)
        except ValueError as error:
            return InvalidContent(f"the query's options do not fit the configuration: {error}")

    def _encoded(
        self, query: OpenQuery, sides: tuple[OpenSide, ...], visuals: VisualTable
    ) -> PreparedPair:
        options = query.options
        if isinstance(options, RerankError):
            raise options.with_traceback(None)
        assert options.max_length is not None
        if query.instruction is not None:
            self._check_text(query.instruction, "instruction")
        read = [side.read(query.media_options, self._read) for side in sides]
        if num_tokens := sum(side.num_visual_tokens for side in read):
            check_tokens(num_tokens, self.config.max_visual_tokens)
        within = [side.within(visuals) for side in read]
        return self._encoder.encode(query.instruction, within, options.max_length, sides[-1].field)

    def _read(
        self, content: Content, options: QueryOptions, field: str, permit: Permit
    ) -> ReadSide:
        for text in content.texts:
            self._check_text(text, field)
        if self.config.empty == "error" and content.says_nothing:
            what = "only blanks" if "".join(content.texts) else "no text, image or video"
            empty = EmptyQuery if field.startswith("query") else EmptyDocument
            raise empty(f"{field} says nothing: it has {what}")
        if content.has_media:
            self._check_media(field)
            self._check_sizes(content, options)
        table, num_tokens = VisualTable(), 0
        spans: list[VisualSpan] = []
        for pixels, time_s in self._media(content, options, permit):
            visual = table.add(Visual.of(pixels))
            spans.append(VisualSpan(visual, merged_grid(pixels), time_s))
            num_tokens += spans[-1].num_tokens
            check_tokens(num_tokens, self.config.max_visual_tokens)
        texts = content.texts + tuple(self._page_texts(content, field, permit))
        return ReadSide(Side(tuple(spans), texts), table.visuals)

    def _page_texts(self, content: Content, field: str, permit: Permit) -> Iterator[str]:
        """The text layers of its PDF pages, of those that have one."""
        pages = (image for image in content.images if isinstance(image, PdfPage))
        for page in pages if self.config.pdf_text else ():
            permit()
            limits = self.config.max_pdf_pages, self.config.max_text_chars
            text = self.videos.pdf_text(page, self._reader, *limits)
            self._check_text(text, field)
            if text.strip():
                yield text

    def _media(
        self, content: Content, options: QueryOptions, permit: Permit
    ) -> Iterator[tuple[np.ndarray, float | None]]:
        """The pixels of each visual, in the prompt's order, and a video's times in seconds."""
        for video in content.videos:
            permit()
            frames, times_s = self._video_frames(video, options, permit)
            for start in range(0, len(frames), TEMPORAL_PATCH_SIZE):
                pair = frames[start : start + TEMPORAL_PATCH_SIZE]
                yield pair, (times_s[start] + times_s[start + 1]) / TEMPORAL_PATCH_SIZE
        for image in content.images:
            yield self._image_pixels(image, options, permit), None

    def _check_media(self, field: str) -> None:
        if not self.family.takes_media:
            raise InvalidContent(f"{field} has an image or a video: {self.family.name} reads texts")

    def _check_sizes(self, content: Content, options: QueryOptions) -> None:
        """Raises TooManyVisualTokens before anything is decoded, as far as sizes are at hand: what
        has to be read or opened first counts the least that it can have.
        """
        limit = self.config.max_visual_tokens
        assert options.image_max_pixels and options.video_min_pixels and options.max_frames
        frames = [min(len(video.frames or ".."), options.max_frames) for video in content.videos]
        pairs = sum((number + 1) // TEMPORAL_PATCH_SIZE for number in frames)
        num_tokens = options.video_min_pixels // PIXELS_PER_TOKEN * pairs
        most = options.image_max_pixels // PIXELS_PER_TOKEN
        if num_tokens + most * len(content.images) > limit:  # else no header need be read
            sizes = map(image_size, content.images)
            num_tokens += sum(image_tokens(*size, options) for size in sizes if size is not None)
        check_tokens(num_tokens, limit)

    def _check_text(self, text: str, field: str) -> None:
        if not isinstance(text, str):  # an instruction, which nothing has parsed before
            raise InvalidContent(f"{field} must be a string, got {type(text).__name__}")
        if len(text) > self.config.max_text_chars:
            raise TextTooLarge(
                f"{field} has a text of {len(text)} characters, over the limit of "
                f"{self.config.max_text_chars}"
            )
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InvalidContent(
                f"{field} has a text that is not Unicode: a lone surrogate at character "
                f"{error.start}"
            ) from error

    def _image_pixels(
        self, image: ImageSource | PdfPage, options: QueryOptions, permit: Permit
    ) -> np.ndarray:
        if isinstance(image, PILImage.Image):
            return image_pixels(self._loaded(image, permit), options)
        key = _digest(image), options
        pixels = self._pixels.get(key)
        if pixels is None:
            if isinstance(image, PdfPage):
                pixels = self._page_pixels(image, options, permit)
            else:
                pixels = image_pixels(self._loaded(image, permit), options)
            self._pixels.put(key, pixels)
        return pixels

    def _page_pixels(self, page: PdfPage, options: QueryOptions, permit: Permit) -> np.ndarray:
        permit()
        limits = self.config.max_pdf_pages, self.config.max_decoded_pixels
        tokens = self.config.max_visual_tokens
        return self.videos.pdf_page(page, self._reader, options, *limits, tokens)[None]

    def _loaded(self, image: ImageSource, permit: Permit) -> PILImage.Image:
        limit, depth = self.config.max_decoded_pixels, self.config.image_depth
        return load_image(image, self._reader, limit, depth, permit, self.videos.image)

    def _video_frames(
        self, video: Video, options: QueryOptions, permit: Permit
    ) -> tuple[np.ndarray, list[float]]:
        """Resized frames, an even number of them, and the time of each in seconds."""
        max_pixels, max_tokens = self.config.max_decoded_pixels, self.config.max_visual_tokens
        if video.frames is None:
            seconds = self.config.max_video_s
            return self.videos.frames(video, self._reader, options, max_pixels, seconds, max_tokens)
        assert options.max_frames is not None
        chosen = chosen_frames(video, options.max_frames)
        decoded = (self._loaded(frame, permit) for frame in chosen)
        frames = frame_list_pixels(decoded, len(chosen), options, max_tokens)
        rate = video.fps or FRAME_LIST_FPS
        return frames, [index / rate for index in range(len(frames))]


def _digest(image: bytes | str | PdfPage) -> bytes:
    """One for what is read of a source, whatever names it."""
    number = f" {image.number}" if isinstance(image, PdfPage) else ""
    source = image.source if isinstance(image, PdfPage) else image
    data = source if isinstance(source, bytes) else source.encode("utf-8", "surrogatepass")
    return blake2b(data, key=f"{type(source).__name__}{number}".encode()).digest()
