"""Builds demo/data: one PNG per object and design, and each object's name in 33 languages.

A maintainer runs this once, with `npm` and `resvg-py` at hand, and commits what it writes; training
and the demo read only the committed files.
"""

import argparse
import csv
import io
import json
import re
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

import build_set
import pyarrow as pa
import pyarrow.parquet as pq
import resvg_py
from PIL import Image

DEMO = Path(__file__).resolve().parent
SIZE = 64  # pixels a side: the smallest square that the official preprocessing leaves as it is

# design -> (npm package, version). Training never sees the last one (see drawings.py).
DESIGNS = {
    "noto": ("@iconify-json/noto", "1.2.9"),
    "noto-v1": ("@iconify-json/noto-v1", "1.2.5"),
    "fluent": ("@iconify-json/fluent-emoji", "1.2.7"),
    "fluent-flat": ("@iconify-json/fluent-emoji-flat", "1.2.6"),
    "fluent-high-contrast": ("@iconify-json/fluent-emoji-high-contrast", "1.2.6"),
    "fxemoji": ("@iconify-json/fxemoji", "1.2.2"),
    "streamline": ("@iconify-json/streamline-emojis", "1.2.4"),
    "twemoji": ("@iconify-json/twemoji", "1.2.5"),
    "emojitwo": ("@iconify-json/emojione", "1.2.3"),
}
CLDR = ("cldr-annotations-full", "48.2.0")
LANGUAGES = (
    *("en", "de", "fr", "es", "it", "pt", "nl", "sv", "da", "no", "fi", "pl", "cs", "hu", "ro"),
    *("el", "ru", "uk", "bg", "tr", "ar", "he", "fa", "hi", "bn", "ta", "th", "vi", "id", "ms"),
    *("ja", "ko", "zh"),
)


@dataclass(frozen=True, slots=True)
class DemoObject:
    slug: str  # the English CLDR name, lower case, words joined by "-"
    emoji: str
    aliases: frozenset[str]  # other names that a design's package gives it


def slugify(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def fetch(package: str, version: str, work: Path) -> Path:
    """Unpacks the package below `work` and returns its folder."""
    folder = work / f"{package.replace('@', '').replace('/', '-')}-{version}"
    if not folder.exists():
        command = [
            "npm",
            "pack",
            "--silent",
            "--pack-destination",
            str(work),
            f"{package}@{version}",
        ]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        with tarfile.open(f"{folder}.tgz") as archive:
            archive.extractall(folder, filter="data")
    return folder / "package"


def annotations(cldr: Path, language: str) -> dict[str, str]:
    """Emoji (without variation selectors) to its CLDR short name."""
    text = (cldr / "annotations" / language / "annotations.json").read_text(encoding="utf-8")
    entries = json.loads(text)["annotations"]["annotations"]
    return {
        key.replace("\ufe0f", ""): entry["tts"][0]
        for key, entry in entries.items()
        if "tts" in entry
    }


def read_objects(english: dict[str, str]) -> list[DemoObject]:
    """The hand-picked objects of objects.tsv (emoji, aliases)."""
    objects = []
    with (DEMO / "objects.tsv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            aliases = frozenset(row["aliases"].split())
            objects.append(DemoObject(slugify(english[row["emoji"]]), row["emoji"], aliases))
    return objects


def rasterise(icons: dict, name: str) -> bytes:
    icon = icons["icons"][name]
    width = icon.get("width", icons.get("width", 16))
    height = icon.get("height", icons.get("height", 16))
    box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}">{icon["body"]}</svg>'
    return bytes(resvg_py.svg_to_bytes(svg_string=svg, width=SIZE, height=SIZE))


@dataclass(frozen=True, slots=True)
class Package:
    icons: dict
    icon_of: dict[str, str]  # an icon's or an alias's name -> the icon's


def read_package(folder: Path) -> Package:
    icons = json.loads((folder / "icons.json").read_text(encoding="utf-8"))
    icon_of = {name: name for name in icons["icons"]}
    icon_of |= {alias: entry["parent"] for alias, entry in icons.get("aliases", {}).items()}
    return Package(icons, icon_of)


def icon_names(package: Package, thing: DemoObject) -> list[str]:
    """The icons that draw `thing`: by its name (numbered, or run together), else by an alias."""
    tries = [thing.slug, *(f"{thing.slug}-{n}" for n in (1, 2, 3)), thing.slug.replace("-", "")]
    for names in (tries, sorted(thing.aliases)):
        found = [package.icon_of[name] for name in names if name in package.icon_of]
        if found:
            return list(dict.fromkeys(found))
    return []


def as_png(data: bytes) -> bytes:
    """RGBA PNG of SIZE x SIZE; still transparent, so that training can choose the ground."""
    drawing = Image.open(io.BytesIO(data)).convert("RGBA")
    square = Image.new("RGBA", (SIZE, SIZE), (255, 255, 255, 0))
    square.paste(drawing, ((SIZE - drawing.width) // 2, (SIZE - drawing.height) // 2))
    out = io.BytesIO()
    square.save(out, format="PNG", optimize=True)
    return out.getvalue()


def render(packages: dict[str, Package], things: list[DemoObject]) -> list[dict]:
    return [
        {
            "object": thing.slug,
            "design": design,
            "variant": variant,
            "png": as_png(rasterise(package.icons, name)),
        }
        for thing in things
        for design, package in packages.items()
        for variant, name in enumerate(icon_names(package, thing))
    ]


def write_names(cldr: Path, things: list[DemoObject]) -> None:
    by_language = {language: annotations(cldr, language) for language in LANGUAGES}
    names = {
        thing.slug: {
            "emoji": thing.emoji,
            "names": {language: by_language[language][thing.emoji] for language in LANGUAGES},
        }
        for thing in things
    }
    for language in LANGUAGES:
        spelled = [entry["names"][language].casefold() for entry in names.values()]
        twice = {name for name in spelled if spelled.count(name) > 1}
        if twice:
            raise ValueError(f"two objects share a name in {language}: {sorted(twice)}")
    text = json.dumps(names, ensure_ascii=False, indent=1)
    (DEMO / "data" / "names.json").write_text(text + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    default = DEMO.parent / "build" / "demo-packages"
    parser.add_argument(
        "--work", type=Path, default=default, help="folder for the downloaded packages"
    )
    work = parser.parse_args().work
    work.mkdir(parents=True, exist_ok=True)
    cldr = fetch(*CLDR, work)
    folders = {design: fetch(*package, work) for design, package in DESIGNS.items()}
    english = annotations(cldr, "en")
    things = read_objects(english)
    (DEMO / "data").mkdir(exist_ok=True)
    write_names(cldr, things)
    rows = render({design: read_package(folder) for design, folder in folders.items()}, things)
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, DEMO / "data" / "renderings.parquet", compression="none")
    for design in DESIGNS:
        covered = {row["object"] for row in rows if row["design"] == design}
        missing = [thing.slug for thing in things if thing.slug not in covered]
        print(f"{design}: {len(covered)} of {len(things)} objects, missing {missing}")
    print(f"{len(rows)} renderings of {len(things)} objects")
    build_set.write_set()


if __name__ == "__main__":
    main()
