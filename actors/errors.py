"""Everything that can be wrong with one pair, as exceptions with a stable `code`.

    RerankError
    ├── InvalidContent           invalid_content         a field of the wrong type, an unknown field
    │   ├── EmptyQuery           empty_query             the query says nothing
    │   ├── EmptyDocument        empty_document          no text, image or video, or blanks alone
    │   ├── TextTooLarge         text_too_large          a text over max_text_chars
    │   └── SpecialTokenInText   special_token_in_text   a visual placeholder typed in text
    ├── InvalidRow                                       found by the job before scoring
    │   ├── NullId               null_id
    │   ├── DuplicateId          duplicate_id
    │   ├── ConflictingQuery     conflicting_query       the id's first row has another query
    │   ├── EmptyCandidates      empty_candidates
    │   ├── QueryNotFound        query_not_found         named by the run, not in queries
    │   └── DocumentNotFound     document_not_found      named by the run, not in corpus
    ├── MediaError
    │   ├── MediaNotFound        media_not_found
    │   ├── MediaForbidden       media_forbidden         outside media_root, an address not public
    │   ├── MediaUnreachable     media_unreachable       the storage or the server refused or failed
    │   ├── MediaTooLarge        media_too_large         more bytes or pages than are read
    │   ├── UnknownScheme        unknown_scheme
    │   ├── ImageDecodeError     image_decode
    │   ├── ImageTooLarge        image_too_large         more pixels than max_decoded_pixels
    │   ├── AspectRatio          aspect_ratio            over 200, as in the official preprocessing
    │   ├── TooManyVisualTokens  too_many_visual_tokens  a pair's media, over max_visual_tokens
    │   ├── PdfDecodeError       pdf_decode              damaged, protected by a password, no page
    │   ├── VideoDecodeError     video_decode
    │   ├── VideoTooLong         video_too_long          more seconds than max_video_s
    │   ├── VideoTooShort        video_too_short         a file of one frame, an empty list
    │   └── VideoReaderMissing   video_reader_missing    PyAV (or decord) is not installed
    ├── ScoringError
    │   ├── OutOfMemory          out_of_memory           one pair alone does not fit the device
    │   └── NonFiniteScore       non_finite_score        the model gave NaN or infinity
    └── Failure                                          of ours or of a library, found by the job
        ├── Crashed              crashed                 its process died of it, twice
        ├── TimedOut             timed_out               it took longer than a pair may, twice
        └── Unexpected           unexpected              an exception that nobody foresaw

The job writes code and sentence beside a null score; the endpoint answers with the same code.
"""


class RerankError(Exception):
    """One pair cannot be scored; `code` is stable, the message is a sentence for people.

    The message is always valid Unicode and never long, whatever a path or a decoder put into it.
    """

    code = "rerank_error"
    _MAX_CHARS = 1_000

    def __init__(self, message: str) -> None:
        if len(message) > self._MAX_CHARS:
            message = f"{message[:300]} ... {message[300 - self._MAX_CHARS :]}"
        super().__init__(message.encode("utf-8", "backslashreplace").decode("utf-8"))

    def __reduce__(self) -> tuple[type["RerankError"], tuple[str]]:
        return type(self), (str(self),)


class InvalidContent(RerankError):
    code = "invalid_content"


class EmptyQuery(InvalidContent):
    code = "empty_query"


class EmptyDocument(InvalidContent):
    code = "empty_document"


class TextTooLarge(InvalidContent):
    code = "text_too_large"


class SpecialTokenInText(InvalidContent):
    code = "special_token_in_text"


class InvalidRow(RerankError):
    code = "invalid_row"


class NullId(InvalidRow):
    code = "null_id"


class DuplicateId(InvalidRow):
    code = "duplicate_id"


class ConflictingQuery(InvalidRow):
    code = "conflicting_query"


class EmptyCandidates(InvalidRow):
    code = "empty_candidates"


class QueryNotFound(InvalidRow):
    code = "query_not_found"


class DocumentNotFound(InvalidRow):
    code = "document_not_found"


class MediaError(RerankError):
    code = "media_error"


class MediaNotFound(MediaError):
    code = "media_not_found"


class MediaForbidden(MediaError):
    code = "media_forbidden"


class MediaUnreachable(MediaError):
    code = "media_unreachable"


class MediaTooLarge(MediaError):
    code = "media_too_large"


class UnknownScheme(MediaError):
    code = "unknown_scheme"


class ImageDecodeError(MediaError):
    code = "image_decode"


class ImageTooLarge(MediaError):
    code = "image_too_large"


class AspectRatio(MediaError):
    code = "aspect_ratio"


class TooManyVisualTokens(MediaError):
    code = "too_many_visual_tokens"


class PdfDecodeError(MediaError):
    code = "pdf_decode"


class VideoDecodeError(MediaError):
    code = "video_decode"


class VideoTooLong(MediaError):
    code = "video_too_long"


class VideoTooShort(MediaError):
    code = "video_too_short"


class VideoReaderMissing(MediaError):
    code = "video_reader_missing"


class ScoringError(RerankError):
    code = "scoring_error"


class OutOfMemory(ScoringError):
    code = "out_of_memory"


class NonFiniteScore(ScoringError):
    code = "non_finite_score"


class Failure(RerankError):
    code = "failure"


class Crashed(Failure):
    code = "crashed"


class TimedOut(Failure):
    code = "timed_out"


class Unexpected(Failure):
    code = "unexpected"

    @classmethod
    def of(cls, error: Exception, doing: str) -> "Unexpected":
        return cls(f"{doing}: {type(error).__name__}: {error}")
