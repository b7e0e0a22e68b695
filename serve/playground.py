"""The playground: one page from which a person sends a request and sees the ranking.

The page is one file without a build step; the policy names its one style and its one script by
their hashes. Knows nothing about the server that sends it.
"""

import re
from base64 import b64encode
from hashlib import sha256
from html import escape
from pathlib import Path

_PAGE = (Path(__file__).parent / "playground.html").read_text("utf-8")


def page(model: str) -> str:
    return _PAGE.replace("{{model}}", escape(model))


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
