"""The picture of all stages in the README, drawn from their list.

python -m web.road > docs/road.svg
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape

from pipeline.stages import CANARY, CORPUS, MODEL, Step

HEIGHT = 330
BOX, GAP, TALL = 104, 16, 58  # width of a stage's box, distance to the next one, height
LEFT = 28
SPARK, DEEPSPEED = 86, 214  # y of each row's top
STYLE = """text{font-family:system-ui,sans-serif;text-anchor:middle}.name{font-size:13px;font-weight:600;fill:#111827}
.note{font-size:10.5px;fill:#4b5563}.row{font-size:13px;font-weight:600;text-anchor:start;fill:#6b7280}
.foot{font-size:13px;fill:#4b5563}rect{stroke-width:1.2}.spark rect{fill:#fff3e6;stroke:#d9822b}
.deep rect{fill:#e8f1ff;stroke:#3b74c9}.data rect{fill:#f3f4f6;stroke:#9ca3af}
.arrow{stroke:#6b7280;stroke-width:1.4;fill:none}.frame{fill:#fff;stroke:#d1d5db;stroke-dasharray:5 4}"""


def svg() -> str:
    """The content of the file."""
    corpus, model = [CANARY, *CORPUS], list(MODEL)
    boxes = max(1 + len(corpus), 1 + len(model) + 1)  # of the longer row, with the data before and behind it
    places = [LEFT + n * (BOX + GAP) for n in range(boxes)]
    width = places[-1] + BOX + LEFT
    turn = SPARK + TALL + 34
    last = places[len(corpus)]
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}" role="img" '
        f'aria-label="{description()}">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 L8 4 L0 8 z" fill="#6b7280"/></marker></defs>',
        f"<style>{STYLE}</style>",
        f'<rect x="1" y="1" width="{width - 2}" height="{HEIGHT - 2}" rx="12" class="frame"/>',
        f'<text x="{LEFT}" y="28" class="row">Airflow: what runs after what</text>',
        f'<text x="{places[1]}" y="{SPARK - 12}" class="row" style="fill:#d9822b">Spark</text>',
        f'<text x="{places[1]}" y="{DEEPSPEED - 12}" class="row" style="fill:#3b74c9">DeepSpeed</text>',
        box("data", places[0], SPARK, "WARC files", "Common Crawl"),
        *row("spark", places[1 : 1 + len(corpus)], SPARK, corpus),
        f'<path class="arrow" d="M{last + BOX / 2} {SPARK + TALL} V{turn} H{LEFT + BOX / 2} V{DEEPSPEED + TALL / 2} '
        f'H{places[1] - 1}" marker-end="url(#tip)"/>',
        *row("deep", places[1 : 1 + len(model)], DEEPSPEED, model, joined=False),
        arrow(places[len(model) + 1] - GAP, DEEPSPEED),
        box("data", places[len(model) + 1], DEEPSPEED, "chat model", "and its report"),
        f'<text x="{width / 2}" y="{DEEPSPEED + TALL + 30}" class="foot">each stage: one artifact with a manifest '
        "(fingerprint, files, counts, inputs), so every token leads back to its page,</text>",
        f'<text x="{width / 2}" y="{DEEPSPEED + TALL + 48}" class="foot">and what is made already is never made again'
        "</text>",
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def description() -> str:
    """The text alternative of the picture."""
    return (
        f"The road: WARC files become token shards by Spark ({named((CANARY, *CORPUS))}); token shards become a chat "
        f"model by DeepSpeed ({named(MODEL)}); Airflow runs both, and a report shows what happened"
    )


def named(steps: Iterable[Step]) -> str:
    """The names of the stages, separated by commas."""
    return ", ".join(step.stage for step in steps)


def row(kind: str, places: Sequence[float], top: float, steps: Sequence[Step], joined: bool = True) -> Iterator[str]:
    """A box per stage with arrows between them; `joined`: with an arrow to the first box, too."""
    for place, step in zip(places, steps, strict=True):
        if joined:
            yield arrow(place - GAP, top)
        yield box(kind, place, top, step.stage, step.note if not step.of else f"of {step.of}")
        joined = True


def box(kind: str, left: float, top: float, name: str, note: str) -> str:
    """A box with a name and a note."""
    middle = left + BOX / 2
    return (
        f'<g class="{kind}"><rect x="{left}" y="{top}" width="{BOX}" height="{TALL}" rx="8"/>'
        f'<text x="{middle}" y="{top + 25}" class="name">{escape(name)}</text>'
        f'<text x="{middle}" y="{top + 43}" class="note">{escape(note)}</text></g>'
    )


def arrow(left: float, top: float) -> str:
    """An arrow over the distance between two boxes."""
    middle = top + TALL / 2
    return f'<path class="arrow" d="M{left} {middle} H{left + GAP - 1}" marker-end="url(#tip)"/>'


if __name__ == "__main__":
    print(svg(), end="")
