"""The playground: one page from which a person sends a request and sees the ranking.

The page is one file without a build step; the policy names its one style and its one script by
their hashes. Knows nothing about the server that sends it.
"""

import json
import logging
import re
from base64 import b64encode
from hashlib import sha256
from html import escape
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

logger = logging.getLogger(__name__)

_PAGE = (Path(__file__).parent / "playground.html").read_text("utf-8")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ExampleContent(_Strict):
    """A query or document; `file` is the name under which its image is shown."""

    text: str = ""
    image: Annotated[str, Field(pattern=r"^data:image/\w+;base64,[\w+/]+=*$")] | None = None
    file: str = ""


class Example(_Strict):
    """What one button fills in."""

    name: str
    query: ExampleContent
    documents: list[ExampleContent]


class Guide(_Strict):
    """What `playground.json` of a checkpoint says: what the model is, and what it can do."""

    about: str = ""
    examples: list[Example] = []


def guide_of(checkpoint: Path) -> Guide:
    """The checkpoint's own; an empty one where it has none, or another program's file."""
    path = checkpoint / "playground.json"
    if not path.is_file():
        return Guide()
    try:
        return Guide.model_validate_json(path.read_bytes())
    except ValidationError as error:
        logger.warning("%s is not used: %s", path, error)
        return Guide()


def page(model: str, guide: Guide | None = None) -> str:
    """The page's HTML; without examples in `guide` it has its own, which a large model can do."""
    guide = guide or Guide()
    examples = [example.model_dump(exclude_defaults=True) for example in guide.examples]
    values = {"model": model, "about": guide.about, "examples": json.dumps(examples)}
    return re.sub(r"{{(\w+)}}", lambda found: escape(values[found[1]]), _PAGE)


def _hash_of(tag: str) -> str:
    """CSP's name for what stands in the page's one <tag>: the hash of its text as it is."""
    (text,) = re.findall(rf"<{tag}\b[^>]*>(.*?)</{tag}>", _PAGE, re.DOTALL)
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        f"script-src {_hash_of('script')}",
        f"style-src {_hash_of('style')}",
        "img-src data: blob:",
        "media-src data: blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
"""The header that goes with `page`. Trusted types without a policy: innerHTML = "..." throws."""
