"""Writes demo/model/playground.json: what the playground says of the demo's model, and examples.

The pictures to be found are of the design that training never saw; the query's is another one's.
"""

import base64
import json
from pathlib import Path

import numpy as np
from build_set import png
from drawings import TEST_DESIGN, Drawings, load_drawings, on_white

PATH = Path(__file__).resolve().parent / "model" / "playground.json"
ABOUT = (
    "A toy of 3 million parameters, trained in minutes: it knows 96 emoji by their names in 33 "
    "languages and by their pictures, and nothing else. No sentences, no photographs. Its scores "
    "rank; they are no probabilities."
)


def named(drawings: Drawings, thing: str, language: str) -> dict:
    return {"text": drawings.names[drawings.objects.index(thing)][language]}


def pictured(drawings: Drawings, thing: str, design: str = TEST_DESIGN) -> dict:
    rows = drawings.rows([design])
    row = rows[drawings.labels.numpy()[rows] == drawings.objects.index(thing)][:1]
    pixels = on_white(drawings.pixels[row])[0].permute(1, 2, 0).byte().numpy()
    data = base64.b64encode(png(np.ascontiguousarray(pixels))).decode()
    return {"image": f"data:image/png;base64,{data}", "file": f"{thing}.png"}


def examples(drawings: Drawings) -> list[dict]:
    words = [
        *(("tractor", "fr"), ("house", "ja"), ("bicycle", "ru"), ("helicopter", "es")),
        *(("automobile", "en"), ("sailboat", "de"), ("bicycle", "zh"), ("rocket", "ar")),
    ]
    things = ("umbrella", "balloon", "snowflake", "rainbow", "sun", "tropical-fish", "guitar")
    mixed = [
        *(pictured(drawings, "violin"), named(drawings, "guitar", "ru")),
        *(pictured(drawings, "hammer"), named(drawings, "pencil", "it")),
        *(pictured(drawings, "guitar"), named(drawings, "trumpet", "en")),
        pictured(drawings, "rocket") | named(drawings, "rocket", "de"),
    ]
    return [
        {
            "name": "Names",
            "query": named(drawings, "bicycle", "de"),
            "documents": [named(drawings, *each) for each in words],
        },
        {
            "name": "Pictures",
            "query": named(drawings, "rainbow", "en"),
            "documents": [pictured(drawings, thing) for thing in things],
        },
        {
            "name": "Picture as query",
            "query": pictured(drawings, "guitar", "noto"),
            "documents": mixed,
        },
    ]


def main() -> None:
    guide = {"about": ABOUT, "examples": examples(load_drawings())}
    PATH.write_text(json.dumps(guide, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    print(f"{PATH}: {PATH.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
