"""The playground in a real browser, against a small real server that scores by shared words."""

import asyncio
import base64
import hashlib
import io
import json
import re
import shutil
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from shardrank.serve import playground
from shardrank.serve.playground import CONTENT_SECURITY_POLICY, Guide, guide_of, page
from tests.support.browser import chromium, needs_browser

sync_api = pytest.importorskip("playwright.sync_api", reason="the package playwright is missing")
expect = sync_api.expect

DEMO_MODEL = Path(__file__).parents[2] / "demo" / "model"
MODEL = "Qwen/Qwen3-VL-Reranker-2B"
HOSTILE = '<img src=x onerror="window.hacked=1">'


# ---- the stand-in ----------------------------------------------------------------------------


def words(content: Any) -> set[str]:
    text = content if isinstance(content, str) else content.get("text", "")
    return set(re.findall(r"\w+", text.lower()))


def media_of(content: Any) -> bytes | None:
    """The bytes of a data: URL in a query or document."""
    url = "" if isinstance(content, str) else content.get("image") or content.get("video") or ""
    return base64.b64decode(url.partition(";base64,")[2], validate=True) if url else None


def result_of(index: int, query: Any, document: Any) -> dict[str, Any]:
    """Shared words, and a little for media by its bytes; the word `broken` is an error."""
    if "broken" in words(document):
        error = {"code": "image_decode", "message": f"image 0 does not decode: {HOSTILE}"}
        return {"index": index, "relevance_score": None, "error": error}
    media = media_of(document)
    share = len(words(query) & words(document)) / (1 + len(words(query)))
    extra = hashlib.sha256(media).digest()[0] / 1000 if media else 0.0
    return {"index": index, "relevance_score": share + extra, "truncated": index == 7}


def answer_to(request: dict[str, Any]) -> dict[str, Any]:
    query, documents = request["query"], request["documents"]
    results = [result_of(index, query, each) for index, each in enumerate(documents)]
    results.sort(key=lambda result: -1.0 if (s := result["relevance_score"]) is None else s)
    return {
        "id": "x",
        "results": results[::-1],
        "usage": {"prompt_tokens": 1234, "total_tokens": 1234, "image_tokens": 64},
        "meta": {"warnings": []},
    }


@dataclass
class StandIn:
    """What it was asked, and what it shall do. gate: an answer waits until it is set."""

    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[Headers] = field(default_factory=list)
    refusal: Response | None = None
    key: str | None = None
    gate: threading.Event = field(default_factory=threading.Event)
    origin: str = ""
    model: str = MODEL
    guide: Guide | None = None

    @property
    def sent(self) -> dict[str, Any]:
        return self.requests[-1]


def refusal(status: int, code: str, message: str, retry_after: str | None = None) -> Response:
    error = {"message": message, "type": "x", "param": None, "code": code}
    body = {"error": error, "message": message, "detail": message, "request_id": "req-7"}
    return JSONResponse(body, status, {"Retry-After": retry_after} if retry_after else None)


def app_of(standin: StandIn) -> Starlette:
    async def home(request: Request) -> Response:
        html = page(standin.model, standin.guide)
        return HTMLResponse(html, headers={"Content-Security-Policy": CONTENT_SECURITY_POLICY})

    async def rerank(request: Request) -> Response:
        standin.headers.append(request.headers)
        standin.requests.append(await request.json())
        await asyncio.to_thread(standin.gate.wait, 30)
        if standin.key and request.headers.get("Authorization") != f"Bearer {standin.key}":
            return refusal(401, "invalid_api_key", "No key, or a wrong one.")
        return standin.refusal or JSONResponse(answer_to(standin.sent))

    return Starlette(routes=[Route("/", home), Route("/v2/rerank", rerank, methods=["POST"])])


# ---- the browser -----------------------------------------------------------------------------

WATCH = """
window.animations = 0;
const animate = Element.prototype.animate;
Element.prototype.animate = function (...all) {
  window.animations += 1;
  return animate.apply(this, all);
};
addEventListener("securitypolicyviolation",
  (event) => console.error("policy: " + event.violatedDirective));
Object.defineProperty(navigator, "clipboard",
  { configurable: true, value: { writeText: async (text) => { window.copied = text; } } });
"""


@dataclass
class Playground:
    """problems: what the console said in anger, and requests to anywhere else."""

    page: Any
    standin: StandIn
    problems: list[str] = field(default_factory=list)

    def get(self, name: str) -> Any:
        return self.page.locator(f"#{name}")

    def example(self, name: str) -> None:
        self.page.get_by_role("button", name=name, exact=True).click()

    def add(self, *texts: str) -> None:
        self.get("pasted").fill("\n".join(texts))
        self.get("add-text").click()

    def texts(self) -> list[str]:
        return self.page.locator(".card textarea").evaluate_all("all => all.map((t) => t.value)")

    def choose(self, *files: tuple[str, str, bytes], where: str = "files") -> None:
        payloads = [{"name": n, "mimeType": kind, "buffer": data} for n, kind, data in files]
        before = self.page.locator(".card, #query-media .thumb").count()
        self.get(where).set_input_files(payloads)
        thumbs = self.page.locator(".card, #query-media .thumb")
        expect(thumbs).to_have_count(before + len(files))

    def ask(self, query: str, *texts: str) -> dict[str, Any]:
        """Types a query, adds documents of text and has them ranked; what the server was sent."""
        self.get("query").fill(query)
        if texts:
            self.add(*texts)
        return self.rerank()

    def says(self, **words: Any) -> None:
        """What stands in the elements of these names, perhaps among other words."""
        for name, text in words.items():
            expect(self.get(name.replace("_", "-"))).to_contain_text(text)

    def rerank(self) -> dict[str, Any]:
        """Returns when the answer is shown, whatever it is; what the server was sent."""
        with self.page.expect_response("**/v2/rerank"):
            self.get("rerank").click()
        expect(self.get("rerank")).to_be_enabled()
        return self.standin.sent


@pytest.fixture(scope="module")
def browser():
    expect.set_options(timeout=20_000)
    with chromium() as running:
        yield running


@pytest.fixture
def standin():
    standin = StandIn()
    standin.gate.set()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app_of(standin), log_level="critical"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        standin.origin = f"http://127.0.0.1:{listening.getsockname()[1]}"
        yield standin
        standin.gate.set()
        server.should_exit = True
        thread.join()


@pytest.fixture
def opened(browser, standin, request):
    """The page, watched: every test also checks that it was quiet and stayed at home."""
    options = {"viewport": {"width": 1200, "height": 900}, "reduced_motion": "reduce"}
    context = browser.new_context(**(options | getattr(request, "param", {})))
    context.set_default_timeout(20_000)
    tab = context.new_page()
    playground = Playground(tab, standin)
    tab.add_init_script(WATCH)
    tab.on("console", lambda message: note(playground, message))
    tab.on("pageerror", lambda error: playground.problems.append(f"error: {error}"))
    tab.on("request", lambda sent: note_request(playground, sent.url))
    tab.goto(standin.origin + "/")
    yield playground
    assert tab.evaluate("window.hacked") is None
    context.close()
    assert playground.problems == []


def note(playground: Playground, message: Any) -> None:
    """The browser itself logs every status from 400 on; those are the tests' own."""
    if message.type in ("error", "warning") and "the server responded with" not in message.text:
        playground.problems.append(f"{message.type}: {message.text}")


def note_request(playground: Playground, url: str) -> None:
    if not url.startswith((playground.standin.origin + "/", "data:", "blob:")):
        playground.problems.append(f"request: {url}")


def picture(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(file, "PNG")
    return file.getvalue()


# ---- the module ------------------------------------------------------------------------------


def test_the_policy_allows_this_style_and_script_and_nothing_else():
    directives = dict(each.split(" ", 1) for each in CONTENT_SECURITY_POLICY.split("; "))
    assert all("'sha256-" in directives[name] for name in ("script-src", "style-src"))
    assert directives["default-src"] == directives["base-uri"] == "'none'"
    assert directives["connect-src"] == "'self'"
    assert directives["img-src"] == directives["media-src"] == "data: blob:"


# ---- text ------------------------------------------------------------------------------------


@needs_browser
def test_reranking_puts_the_best_first(opened):
    opened.ask("green tea from japan", "a red car", "tea from china", "green tea from japan")
    assert opened.texts() == ["green tea from japan", "tea from china", "a red car"]
    ranks = opened.page.locator(".rank").all_inner_texts()
    assert [text.split()[-1] for text in ranks] == ["1", "2", "3"]
    assert opened.page.locator(".value").all_inner_texts() == ["0.8000", "0.4000", "0.0000"]
    moves = opened.page.locator(".card .move").all_text_contents()
    assert moves == ["▲2 up 2", "", "▼2 down 2"]
    widths = opened.page.locator(".bar span").evaluate_all("all => all.map((b) => b.style.width)")
    assert widths == ["80%", "40%", "0%"]
    status = opened.page.get_by_role("status").filter(has_text="Reranked")
    expect(status).to_have_text("Reranked 3 documents, best: green tea from japan")
    expect(status).to_have_attribute("aria-live", "polite")
    expect(opened.get("usage")).to_have_text(re.compile(r"^1,234 tokens \(64 image\) · [\d,]+ ms$"))
    opened.add(*(f"more tea {i}" for i in range(8)))
    opened.rerank()
    expect(opened.page.get_by_text("cut to the model’s length")).to_have_count(1)


@needs_browser
def test_the_request_is_what_the_contract_says(opened):
    opened.ask("q", "one", "two")
    expected = {"query": "q", "documents": ["one", "two"]}
    assert opened.standin.sent == expected | {"return_documents": False, "on_error": "null"}
    opened.get("instruction").fill("Find what rhymes.")
    opened.rerank()
    assert opened.standin.sent["instruction"] == "Find what rhymes."
    assert "Authorization" not in opened.standin.headers[-1]


@needs_browser
def test_text_is_split_at_lines_or_at_paragraphs_and_added_by_reranking(opened):
    opened.get("pasted").fill("one\ntwo\n\n\n three \n")
    expect(opened.get("add-text")).to_have_text("Add 3 documents")
    opened.page.get_by_label("paragraph").check(force=True)
    expect(opened.get("add-text")).to_have_text("Add 2 documents")
    opened.get("add-text").click()
    assert opened.texts() == ["one\ntwo", "three"]
    opened.get("query").fill("tea")
    opened.get("pasted").fill("coffee\n\ntea")  # not added yet
    opened.get("pasted").press("Control+Enter")
    opened.says(status="Reranked 4 documents")
    assert opened.texts()[0] == "tea"
    expect(opened.get("pasted")).to_have_value("")


@needs_browser
def test_a_document_edited_in_place_is_sent_as_edited_and_marked_until_then(opened):
    opened.ask("tea", "coffee", "tea")
    opened.page.get_by_label("Text of document 2").fill("tea")
    expect(opened.page.locator(".card.outdated")).to_have_count(1)
    expect(opened.page.locator(".card").nth(1)).to_contain_text("edited since")
    opened.page.get_by_label("Text of document 2").fill("coffee")
    expect(opened.page.locator(".card.outdated")).to_have_count(0)
    opened.get("query").fill("coffee")
    expect(opened.page.locator(".card.outdated")).to_have_count(2)
    opened.rerank()
    assert opened.standin.sent["documents"] == ["tea", "coffee"]
    assert opened.texts() == ["coffee", "tea"]
    expect(opened.page.locator(".card.outdated")).to_have_count(0)
    opened.get("query").fill("tea")
    opened.page.get_by_label("Text of document 2").press("Home")
    opened.page.keyboard.press("Control+Enter")
    opened.says(status="best: tea")
    opened.page.keyboard.type("green ")
    assert opened.texts() == ["green tea", "coffee"]  # the cursor stays where a person types


@needs_browser
def test_what_was_added_while_the_server_worked_is_not_scored(opened):
    opened.get("query").fill("tea")
    opened.add("coffee", "tea", "milk")
    opened.standin.gate.clear()
    opened.get("rerank").click()
    opened.page.get_by_label("Remove document 3").click()
    opened.add("more tea")
    opened.standin.gate.set()
    opened.says(status="Reranked 2 documents")
    assert opened.texts() == ["tea", "coffee", "more tea"]
    expect(opened.page.locator(".card").nth(2).locator(".value")).to_have_count(0)


@needs_browser
def test_removing_moves_the_focus_on_and_can_be_undone(opened):
    opened.add("one", "two", "three")
    opened.page.get_by_label("Remove document 2: two").click()
    assert opened.texts() == ["one", "three"]
    expect(opened.page.get_by_label("Remove document 2: three")).to_be_focused()
    expect(opened.get("announcement")).to_have_text("Removed two")
    opened.get("undo").click()
    assert opened.texts() == ["one", "two", "three"]
    opened.get("clear").click()
    expect(opened.get("pasted")).to_be_focused()
    opened.get("undo").click()
    assert opened.texts() == ["one", "two", "three"]
    expect(opened.get("toast")).to_be_hidden()
    opened.ask("mine")
    opened.example("Picture as query")
    expect(opened.get("query-media")).to_be_visible()
    opened.get("undo").click()
    assert sorted(opened.texts()) == ["one", "three", "two"]
    expect(opened.get("query")).to_have_value("mine")
    expect(opened.get("query-media")).to_be_hidden()
    expect(opened.page.locator(".card.outdated")).to_have_count(0)


@needs_browser
def test_what_is_missing_is_said_without_asking_the_server(opened):
    alert = opened.page.get_by_role("alert")
    opened.get("rerank").click()
    expect(alert).to_contain_text("There is no query")
    expect(opened.get("query")).to_be_focused()
    opened.get("query").fill("tea")
    opened.get("rerank").click()
    expect(alert).to_contain_text("There are no documents")
    assert opened.standin.requests == []


# ---- files -----------------------------------------------------------------------------------

FILES_IN = """([target, type, files]) => {
  const transfer = new DataTransfer();
  for (const [name, kind, base64] of files) {
    const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
    transfer.items.add(new File([bytes], name, { type: kind }));
  }
  const options = { bubbles: true, cancelable: true };
  const event = type === "paste" ? new ClipboardEvent(type, { ...options, clipboardData: transfer })
    : new DragEvent(type, { ...options, dataTransfer: transfer });
  document.querySelector(target).dispatchEvent(event);
  return event.defaultPrevented;
}"""


def bring(opened: Playground, how: str, where: str, *files: tuple[str, str, bytes]) -> None:
    """As dropped on, or pasted into, what `where` selects."""
    listed = [[name, kind, base64.b64encode(data).decode()] for name, kind, data in files]
    assert opened.page.evaluate(FILES_IN, [where, how, listed])


@needs_browser
def test_an_image_reaches_the_server_as_it_is(opened):
    image = ("red.png", "image/png", picture("red"))
    opened.choose(image)
    bring(opened, "drop", "body", image)
    bring(opened, "paste", "body", image)
    expect(opened.page.get_by_alt_text("Preview of red.png")).to_have_count(3)
    documents = opened.ask("red")["documents"]
    assert [list(document) for document in documents] == [["image"]] * 3
    assert documents[0]["image"].startswith("data:image/png;base64,")
    assert [media_of(document) for document in documents] == [image[2]] * 3


@needs_browser
def test_the_query_can_be_an_image_with_or_without_text(opened):
    image = ("blue.png", "image/png", picture("blue"))
    shown = opened.page.get_by_alt_text("Preview of blue.png")
    remove = opened.page.get_by_label("Remove blue.png from the query")
    opened.add("something blue")
    for how in ("drop", "paste"):
        bring(opened, how, "#query", image)
        expect(shown).to_be_visible()
        remove.click()
    opened.choose(image, where="query-file")
    opened.rerank()
    assert list(opened.standin.sent["query"]) == ["image"]
    assert media_of(opened.standin.sent["query"]) == image[2]
    opened.ask("but red")
    assert opened.standin.sent["query"]["text"] == "but red"
    remove.click()
    opened.rerank()
    assert opened.standin.sent["query"] == "but red"


@needs_browser
def test_videos_texts_and_captions_are_documents(opened):
    opened.choose(
        ("film.mp4", "video/mp4", b"a film"),
        ("notes.txt", "text/plain", "één\r\ntwo".encode()),
        ("red.png", "image/png", picture("red")),
    )
    bring(opened, "drop", "body", ("old.mkv", "", b"a film of a type that the browser cannot name"))
    expect(opened.page.locator(".card")).to_have_count(4)
    expect(opened.page.locator(".thumb.none").first).to_have_text("video")  # it does not play
    opened.page.get_by_label("Text of document 3").fill("a caption")
    film, notes, red, old = opened.ask("q")["documents"]
    assert (list(film), media_of(film)) == (["video"], b"a film")
    assert notes == "één\ntwo"
    assert (red["text"], media_of(red)) == ("a caption", picture("red"))
    assert old["video"].startswith("data:video/x-matroska;base64,")


@needs_browser
def test_a_file_that_cannot_be_a_document_is_named(opened):
    bring(
        opened, "drop", "body", ("a.pdf", "application/pdf", b"%PDF"), ("b.txt", "text/plain", b"b")
    )
    opened.says(alert="a.pdf is not an image or a video")
    assert opened.texts() == ["b"]
    bring(opened, "drop", "#query", ("b.txt", "text/plain", b"b"))
    opened.says(alert="b.txt is not an image or a video.")
    two = [(f"{n}.png", "image/png", picture("red")) for n in "xy"]
    bring(opened, "drop", "#query", *two)
    opened.says(alert="y.png was not taken", query_media="x.png")


@needs_browser
def test_a_request_over_the_servers_limit_is_announced_before_it_is_sent(opened):
    drop = """(size) => {
      const transfer = new DataTransfer();
      transfer.items.add(new File([new Uint8Array(size)], "film.mp4", { type: "video/mp4" }));
      document.body.dispatchEvent(
        new DragEvent("drop", { bubbles: true, cancelable: true, dataTransfer: transfer }));
    }"""
    opened.page.evaluate(drop, 23 << 20)
    expect(opened.get("size")).to_have_text("Request: 30.7\u00a0MiB")
    opened.page.evaluate(drop, 1 << 20)
    opened.says(
        size="has 32.0\u00a0MiB. The server refuses more than 32",
        announcement="The server refuses more than",
    )
    opened.page.get_by_label("Remove document 1").click()
    expect(opened.get("size")).to_have_text("Request: 1.3\u00a0MiB")


# ---- hostile text ----------------------------------------------------------------------------


@needs_browser
def test_hostile_text_stays_text(opened):
    guide = {"about": HOSTILE, "examples": [{"name": HOSTILE, "query": {}, "documents": []}]}
    opened.standin.model = f"models/{HOSTILE}"
    opened.standin.guide = Guide.model_validate(guide)
    opened.page.reload()
    expect(opened.get("model")).to_have_text(f"models/{HOSTILE}")
    expect(opened.get("about")).to_have_text(HOSTILE)
    expect(opened.get("examples").get_by_role("button")).to_have_text(HOSTILE)
    opened.get("query").fill(f"{HOSTILE} q")
    opened.add(f"{HOSTILE} one", f"{HOSTILE} broken")
    opened.choose((f"{HOSTILE}.png", "image/png", picture("red")))
    opened.choose((f"{HOSTILE}.png", "image/png", picture("red")), where="query-file")
    opened.rerank()
    opened.says(status=HOSTILE)
    expect(opened.page.locator(".note:visible")).to_contain_text(
        f"image_decode image 0 does not decode: {HOSTILE}"
    )
    expect(opened.page.locator(".card .facts:visible")).to_contain_text(f"{HOSTILE}.png")
    opened.page.get_by_label("Remove document 1").click()
    opened.says(toast="<img")
    opened.standin.refusal = refusal(422, HOSTILE, f"documents[0]: {HOSTILE}")
    opened.rerank()
    opened.says(alert=f"documents[0]: {HOSTILE}")
    opened.get("show-code").click()
    opened.says(snippet="<img src=x")
    assert opened.page.locator("img[src=x]").count() == 0


@needs_browser
def test_the_browser_itself_refuses_markup_from_text(opened):
    assert (
        opened.page.evaluate("""() => {
      try { document.body.innerHTML = "<p>x"; } catch (error) { return error.name; }
    }""")
        == "TypeError"
    )
    opened.page.evaluate("""() => {
      const style = document.createElement("style");
      style.textContent = "body { opacity: .5 }";
      document.body.append(style);
    }""")
    assert opened.page.evaluate("getComputedStyle(document.body).opacity") == "1"
    assert any("policy: style-src" in problem for problem in opened.problems)
    opened.problems.clear()


# ---- errors ----------------------------------------------------------------------------------


@needs_browser
def test_a_document_that_failed_says_why_on_its_card(opened):
    opened.ask("tea", "broken", "coffee", "tea")
    last = opened.page.locator(".card").nth(2)
    expect(last).to_contain_text("image_decode image 0 does not decode")
    expect(last).to_contain_text("not scored")
    expect(last.locator(".rank")).to_have_text("–")
    opened.page.get_by_label("Text of document 3").fill("tea")
    opened.rerank()
    expect(opened.page.get_by_text("not scored")).to_have_count(0)
    expect(opened.page.locator(".note:visible")).to_have_count(0)
    expect(opened.page.locator(".bar:visible")).to_have_count(3)


REFUSALS = [
    (refusal(422, "invalid_request", "documents is missing"), ["422", "documents is missing"]),
    (refusal(413, "body_too_large", "At most 32 MiB."), ["413 body_too_large", "req-7"]),
    (refusal(429, "rate_limited", "Slow down.", retry_after="7"), ["Slow", "in 7 seconds."]),
    (refusal(503, "not_ready", "Loading.", retry_after="1"), ["503", "Loading", "in 1 second."]),
    (Response('{"detail": [{"msg": "no query"}]}', 422), ["422", "no query"]),
    (Response("<html>Bad gateway", 502), ["502", "<html>Bad gateway"]),
    (Response("", 500), ["500", "The server gave no reason."]),
    (Response("[]"), ["The server’s answer has no results"]),
]


@needs_browser
def test_a_refusal_is_shown_in_the_servers_words(opened):
    opened.get("query").fill("q")
    opened.add("one", "two")
    alert = opened.page.get_by_role("alert")
    for refused, sentences in REFUSALS:
        opened.standin.refusal = refused
        opened.rerank()
        for sentence in sentences:
            expect(alert).to_contain_text(sentence)
        assert opened.texts() == ["one", "two"]
    opened.standin.refusal = None
    opened.rerank()
    expect(alert).to_be_empty()
    opened.says(status="Reranked 2 documents")


@needs_browser
def test_a_server_that_wants_a_key_gets_it_from_memory_only(opened):
    opened.standin.key = "s3cret"
    opened.get("query").fill("q")
    opened.add("one")
    expect(opened.get("key-panel")).to_be_hidden()
    opened.rerank()
    opened.says(alert="No key, or a wrong one.")
    opened.says(alert="needs an API key")
    expect(opened.page.get_by_label("API key")).to_be_focused()
    for key, told in (
        ("wrong", {"alert": "does not accept the key"}),
        ("ключ", {"alert": "This key cannot be sent"}),
        ("s3cret", {"status": "Reranked 1 document"}),
    ):
        opened.get("key").fill(key)
        opened.get("key").press("Enter")
        opened.says(**told)
    assert opened.standin.headers[-1]["Authorization"] == "Bearer s3cret"
    opened.get("show-code").click()
    opened.says(snippet='-H "Authorization: Bearer $API_KEY"')
    kept = "() => [document.cookie, localStorage.length, sessionStorage.length]"
    assert opened.page.evaluate(kept) == ["", 0, 0]
    opened.page.reload()
    expect(opened.get("key")).to_have_value("")


@needs_browser
def test_a_server_that_is_gone_is_an_error_in_words(opened):
    opened.page.route("**/v2/rerank", lambda route: route.abort())
    opened.get("query").fill("q")
    opened.add("one")
    opened.get("rerank").click()
    opened.says(alert="There is no answer from the server")
    expect(opened.get("rerank")).to_be_enabled()
    (problem,) = opened.problems
    assert "ERR_FAILED" in problem
    opened.problems.clear()


@needs_browser
def test_cancel_ends_the_waiting(opened):
    opened.standin.gate.clear()
    opened.get("query").fill("q")
    opened.add("one", "q")
    opened.get("rerank").focus()
    opened.get("rerank").press("Enter")
    expect(opened.get("rerank")).to_be_disabled()
    expect(opened.get("rerank")).to_have_attribute("aria-busy", "true")
    expect(opened.get("cancel")).to_be_focused()
    opened.get("query").press("Control+Enter")  # one request at a time
    opened.get("cancel").focus()
    opened.get("cancel").press("Enter")
    expect(opened.get("status")).to_have_text("Cancelled.")
    expect(opened.get("rerank")).to_be_enabled()
    expect(opened.get("rerank")).to_be_focused()
    expect(opened.get("rerank")).to_have_attribute("aria-busy", "false")
    expect(opened.get("cancel")).to_be_hidden()
    expect(opened.get("alert")).to_be_empty()
    opened.standin.gate.set()
    assert len(opened.standin.requests) == 1
    assert opened.texts() == ["one", "q"]
    opened.rerank()
    assert opened.texts() == ["q", "one"]


# ---- copy as ---------------------------------------------------------------------------------

NASTY = "it's $HOME `id` $(id) \"q\" \\n \\\\ ! é 日本 %s {x} EOF \u2028 '''"


def copied(opened: Playground, language: str) -> str:
    opened.get("show-code").click()
    opened.page.get_by_label(language, exact=True).check(force=True)
    opened.get("copy").click()
    expect(opened.get("copied")).to_have_text("Copied")
    text = opened.page.evaluate("window.copied")
    assert text.strip() == (opened.get("snippet").text_content() or "").strip()
    opened.get("close-code").click()
    return text


def fill_nastily(opened: Playground, *, with_files: bool) -> None:
    opened.get("query").fill(NASTY)
    opened.get("instruction").fill(f"{NASTY}\nsecond line")
    opened.add("one", NASTY, "EOF")
    if with_files:
        opened.choose(("it's $red `x`.png", "image/png", picture("red")))
        opened.choose(("film.mp4", "video/mp4", b"a film"))
        opened.page.get_by_label("Text of document 5").fill(NASTY)
        opened.choose(("blue.png", "image/png", picture("blue")), where="query-file")


def run(opened: Playground, command: list[str], folder: Any) -> tuple[str, dict[str, Any]]:
    """(what it printed, what the server got), in a folder that has the files."""
    (folder / "it's $red `x`.png").write_bytes(picture("red"))
    (folder / "blue.png").write_bytes(picture("blue"))
    (folder / "film.mp4").write_bytes(b"a film")
    before = len(opened.standin.requests)
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(opened.standin.requests) == before + 1
    return done.stdout, opened.standin.sent


needs_curl = pytest.mark.skipif(
    not (shutil.which("curl") and shutil.which("bash")), reason="no curl or bash"
)
CODES = [
    pytest.param("curl", ["bash", "-c"], False, id="curl, texts", marks=needs_curl),
    pytest.param("curl", ["bash", "-c"], True, id="curl, files", marks=needs_curl),
    pytest.param("Python (httpx)", [sys.executable, "-c"], True, id="httpx"),
    pytest.param("Cohere (Python)", [sys.executable, "-W", "ignore", "-c"], True, id="cohere"),
]


@needs_browser
@pytest.mark.parametrize(("language", "command", "with_files"), CODES)
def test_the_copied_code_asks_the_same(opened, tmp_path, language, command, with_files):
    fill_nastily(opened, with_files=with_files)
    code = copied(opened, language)
    sent = opened.rerank()
    printed, got = run(opened, [*command, code], tmp_path)
    if language == "Cohere (Python)":  # the client's own fields stand beside those
        names = ("query", "documents", "instruction", "on_error")
        sent = {name: sent[name] for name in names} | {"model": MODEL}
        got = {name: got[name] for name in sent}
    assert got == sent
    answer = answer_to(sent)
    best = answer["results"][0]
    if language == "curl":
        assert json.loads(printed) == answer
    else:
        assert printed.splitlines()[0] == f"{best['index']} {best['relevance_score']}"


@needs_browser
def test_a_browser_without_a_clipboard_copies_the_older_way(opened):
    opened.page.evaluate("""() => {
      Object.defineProperty(navigator, "clipboard", { value: undefined });
      addEventListener("copy", () => { window.copied = getSelection().toString(); });
    }""")
    opened.get("query").fill("q")
    text = copied(opened, "curl")
    assert text.startswith("curl -sS 'http://127.0.0.1:")


# ---- examples --------------------------------------------------------------------------------


@needs_browser
def test_an_example_is_one_click_and_a_model_has_its_own(opened):
    outcome = re.compile(r"Reranked [678] documents, best: \S")
    for guide in (None, guide_of(DEMO_MODEL)):
        opened.standin.guide = guide
        opened.page.reload()
        names = opened.get("examples").get_by_role("button").all_inner_texts()
        assert names == [e.name for e in guide.examples] if guide else len(names) == 3
        for name in names:
            opened.example(name)
            opened.rerank()
            opened.says(status=outcome)
    opened.says(about="96 emoji")
    assert media_of(opened.standin.sent["query"]).startswith(b"\x89PNG")


def test_what_a_checkpoint_says_of_itself_is_read_or_left(tmp_path, caplog, monkeypatch):
    # Whatever a server that ran before in this process has made of the log.
    caplog.set_level("WARNING", logger=playground.logger.name)
    monkeypatch.setattr(playground.logger, "disabled", False)
    monkeypatch.setattr(playground.logger, "handlers", [caplog.handler])
    assert guide_of(tmp_path) == Guide()
    for other in ("[]", '{"abuot": "x"}', '{"examples": [{"name": "", "query": {"image": "x"}}]}'):
        (tmp_path / "playground.json").write_text(other)
        assert guide_of(tmp_path) == Guide() and "playground.json is not used" in caplog.text
        caplog.clear()
    assert guide_of(DEMO_MODEL).examples


@needs_browser
def test_the_pictures_are_drawn_in_the_page(opened):
    opened.example("Pictures")
    documents = opened.rerank()["documents"]
    images = [Image.open(io.BytesIO(media_of(each) or b"")).convert("RGB") for each in documents]
    corners = [image.getpixel((60, 60)) for image in images]
    centres = [image.getpixel((120, 120)) for image in images]
    assert centres[0] == centres[5] == (37, 99, 235) and centres[2] == centres[4] == (217, 48, 37)
    assert corners[2] == (217, 48, 37) and corners[4] == (255, 255, 255)
    expect(opened.page.get_by_alt_text("Preview of red-circle.png")).to_be_visible()
    with opened.page.expect_download() as download:
        opened.page.get_by_role("link", name="red-circle.png").click()
    assert download.value.path().read_bytes() == media_of(documents[4])


# ---- for everybody ---------------------------------------------------------------------------

FOCUS = """() => {
  const element = document.activeElement;
  const drawn = [element, element.closest("label")].filter(Boolean)
    .some((each) => getComputedStyle(each).outlineStyle !== "none");
  if (element === document.body) return ["", true];  // on its way through the browser's own
  return [element.id || element.name || element.ariaLabel || element.href || "?", drawn];
}"""


def tab_to(opened: Playground, name: str, *keys: str, types: str = "") -> None:
    """By the tab key alone; every stop on the way shows that it has the focus. There the keys are
    pressed, and what else is given is typed.
    """
    for _ in range(60):
        opened.page.keyboard.press("Tab")
        focused, is_drawn = opened.page.evaluate(FOCUS)
        assert is_drawn, focused
        if focused == name:
            break
    else:
        raise AssertionError(f"{name} is not reached by Tab")
    for key in keys:
        opened.page.keyboard.press(key)
    opened.page.keyboard.type(types)


@needs_browser
def test_everything_works_by_keyboard_alone(opened):
    tab_to(opened, "query", types="green tea")
    tab_to(opened, "pasted", types="coffee\ngreen tea\nwater")
    tab_to(opened, "add-text", "Enter")
    expect(opened.get("pasted")).to_be_focused()
    tab_to(opened, "rerank", "Enter")
    opened.says(status="Reranked 3 documents, best: green tea")
    expect(opened.get("rerank")).to_be_focused()
    tab_to(opened, "Text of document 2", "End", types=" and green tea leaves")
    opened.page.keyboard.press("Control+Enter")
    opened.says(status="Reranked 3 documents")
    assert opened.standin.sent["documents"][1].endswith(" and green tea leaves")
    for name, left in ((f"Remove document 3: {opened.texts()[2]}", 2), ("undo", 3)):
        tab_to(opened, name, "Enter")
        expect(opened.page.locator(".card")).to_have_count(left)
    tab_to(opened, "show-code", "Enter", "ArrowRight")
    opened.says(snippet="import cohere")
    tab_to(opened, "copy", "Enter")
    expect(opened.get("copied")).to_have_text("Copied")
    opened.page.keyboard.press("Escape")
    expect(opened.get("code")).to_be_hidden()
    expect(opened.get("show-code")).to_be_focused()


@needs_browser
def test_every_control_has_a_name_and_headings_are_in_order(opened):
    opened.example("Picture as query")
    opened.get("query").fill("q")
    opened.standin.key = "k"
    opened.rerank()
    session = opened.page.context.new_cdp_session(opened.page)

    def controls() -> list[tuple[str, str]]:
        nodes = session.send("Accessibility.getFullAXTree")["nodes"]
        roles = {"textbox", "button", "radio", "radiogroup", "link", "image", "dialog", "region"}
        found = [(node.get("role", {}), node.get("name", {})) for node in nodes]
        named = [(role.get("value"), name.get("value", "")) for role, name in found]
        return [each for each in named if each[0] in roles]

    outside = controls()
    opened.get("show-code").click()
    inside = controls()
    assert len(outside) > 30 and len(inside) > 5 and ("dialog", "This request as code") in inside
    assert [each for each in outside + inside if not re.search(r"\w\w", each[1])] == []  # not "×"
    levels = opened.page.locator("h1, h2, h3").evaluate_all("all => all.map((h) => h.tagName)")
    assert levels == ["H1", "H2", "H2", "H3", "H2"]
    assert opened.page.locator("html[lang=en] main").count() == 1


CONTRASTS = """() => {
  const parsed = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const luminance = (rgb) => rgb.slice(0, 3).map((c) => c / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    for (let each = element; each; each = each.parentElement) {
      const colour = parsed(getComputedStyle(each).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    throw new Error("no background");
  };
  const found = [];
  for (const element of document.querySelectorAll("body *:not(script):not(noscript)")) {
    const isText = [...element.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    const isField = element.matches("textarea, input[type=text]");
    if ((!isText && !isField) || !element.checkVisibility() || element.closest(".unseen")) continue;
    const pseudo = isField && !element.value ? "::placeholder" : null;
    const [text, ground] = [parsed(getComputedStyle(element, pseudo).color), behind(element)]
      .map(luminance);
    const ratio = (Math.max(text, ground) + 0.05) / (Math.min(text, ground) + 0.05);
    found.push([ratio, element.id || element.className || element.parentElement.className]);
  }
  return found;
}"""


@needs_browser
@pytest.mark.parametrize(
    ("opened", "is_dark"),
    [({"color_scheme": "light"}, False), ({"color_scheme": "dark"}, True)],
    indirect=["opened"],
    ids=["light", "dark"],
)
def test_every_text_has_contrast_in_both_schemes(opened, is_dark):
    opened.get("query").fill("tea")
    opened.example("Picture as query")
    opened.add("coffee", "a star, a star", "broken")
    opened.ask("a star")
    opened.page.get_by_label("Text of document 2").fill("another")
    opened.standin.key = "k"
    opened.rerank()
    opened.page.get_by_label("Remove document 3").click()
    found = opened.page.evaluate(CONTRASTS)
    opened.get("show-code").click()
    found += opened.page.evaluate(CONTRASTS)
    names = {name for _, name in found}
    shown = {"toast-text", "undo", "value failed", "move up", "key", "snippet", "rerank-label"}
    assert shown <= names
    assert [each for each in found if each[0] < 4.5] == []
    paper = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", paper))) < 128 * 3) == is_dark


@needs_browser
@pytest.mark.parametrize(
    "opened",
    [{"viewport": {"width": 360, "height": 640}}, {"viewport": {"width": 640, "height": 400}}],
    indirect=True,
    ids=["360 px", "200 %"],
)
def test_nothing_is_wider_than_a_narrow_window(opened):
    opened.example("Pictures")
    opened.add("x" * 300, "broken " + "y" * 300)
    opened.get("query").fill("z" * 300)
    opened.rerank()
    expect(opened.page.locator(".card").first).to_be_in_viewport(ratio=0.7)
    assert opened.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    inside = """() => [...document.querySelectorAll("main *, header *, dialog *")]
      .filter((e) => e.checkVisibility() && !e.closest(".unseen, pre"))
      .filter((e) => e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.outerHTML)"""
    assert opened.page.evaluate(inside) == []
    opened.get("show-code").click()
    assert opened.page.evaluate(inside) == []


@needs_browser
@pytest.mark.parametrize(
    ("opened", "is_moving"),
    [({"reduced_motion": "no-preference"}, True), ({"reduced_motion": "reduce"}, False)],
    indirect=["opened"],
    ids=["moving", "still"],
)
def test_cards_travel_unless_less_motion_is_wanted(opened, is_moving):
    opened.ask("tea", "coffee", "tea")
    assert opened.texts() == ["tea", "coffee"]
    assert opened.page.evaluate("window.animations") == (2 if is_moving else 0)


@needs_browser
def test_the_best_of_many_documents_is_in_view_and_stays_where_it_is_seen(opened):
    opened.ask("tea", "coffee", "tea")
    assert opened.page.evaluate("scrollY") == 0
    opened.add(*(f"coffee {i}" for i in range(300)), "a tea")
    opened.get("pasted").press("Control+Enter")  # below them all
    opened.says(status="Reranked 303 documents, best: a tea")
    expect(opened.page.locator(".card").first).to_be_in_viewport(ratio=1)
    expect(opened.get("documents-title")).to_be_in_viewport(ratio=1)


@needs_browser
def test_the_page_links_to_the_reference_and_to_health(opened):
    links = opened.page.get_by_role("navigation").get_by_role("link")
    found = links.evaluate_all("all => all.map((link) => [link.textContent, link.href])")
    origin = opened.standin.origin
    assert found == [["API reference", f"{origin}/docs"], ["Health", f"{origin}/health"]]
