"""A document of sections as one self-contained HTML file, and as PDF."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from matplotlib.figure import Figure
from PIL import ImageFile

from mura_ray.render.figures import as_svg
from mura_ray.render.tables import Table, as_html

_CSS = """
:root { --ink: #1a202c; --muted: #5a6472; --line: #d5dae1; --accent: #1b6ca8; --paper: #fff; --warn: #fff6e5; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 "DejaVu Sans", Verdana, sans-serif; }
main { max-width: 1000px; margin: 0 auto; padding: 24px; }
h1 { font-size: 1.7em; margin: 0 0 .2em; }
h2 { font-size: 1.2em; margin: 2em 0 .4em; border-bottom: 1px solid var(--line); }
h3 { font-size: 1em; margin: 1.4em 0 .3em; } p { margin: .4em 0; } .muted { color: var(--muted); font-size: .88em; }
.notice { background: var(--warn); border-left: 4px solid #d69e2e; padding: .5em .8em; margin: .8em 0; }
nav ol { columns: 2; padding-left: 1.3em; } a { color: var(--accent); }
table { border-collapse: collapse; font-size: .82em; margin: .4em 0; }
th, td { padding: .25em .6em; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { border-bottom: 1px solid var(--ink); } .number { text-align: right; white-space: nowrap; }
figure { margin: .6em 0; } figure img { max-width: 100%; height: auto; }
figcaption { color: var(--muted); font-size: .88em; }
pre { background: #f4f6f8; padding: .6em; font-size: .82em; white-space: pre-wrap; }
@media screen { .scroll { overflow-x: auto; } }
@page {
  size: A4; margin: 16mm 14mm;
  @bottom-right { content: counter(page) " / " counter(pages); font-size: 8pt; color: #5a6472; }
}
@media print {
  body { font-size: 9pt; } main { max-width: none; padding: 0; } .number { white-space: normal; }
  table { font-size: 7pt; } th, td { padding: .2em .35em; }
  tr, figure { break-inside: avoid; } h2, h3 { break-after: avoid; }
}
"""


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph."""

    text: str
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Code:
    """Lines to type or to compare."""

    text: str


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """A figure with its caption; `name` is that of its files."""

    name: str
    figure: Figure
    caption: str
    width_percent: int = 60


Part = Text | Code | Picture | Table


@dataclass(frozen=True, slots=True, eq=False)
class Section:
    """A chapter."""

    title: str
    parts: Sequence[Part]


def document_html(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """One HTML file without scripts, and without fonts or pictures from elsewhere."""
    links = "".join(f'<li><a href="#s{place}">{escape(one.title)}</a></li>' for place, one in enumerate(sections))
    chapters = "".join(
        f'<section id="s{place}"><h2>{escape(one.title)}</h2>{"".join(map(_part_html, one.parts))}</section>'
        for place, one in enumerate(sections)
    )
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_CSS}</style></head><body><main>'
        f'<h1>{escape(title)}</h1><p class="muted">{escape(subtitle)}</p><nav><ol>{links}</ol></nav>{chapters}'
        "</main></body></html>\n"
    )


def document_pdf(html: str) -> bytes:
    """The same as pages of A4.

    Raises:
        ValueError: the system's text layout library is missing.
    """
    truncated = ImageFile.LOAD_TRUNCATED_IMAGES
    try:
        from weasyprint import HTML  # loads Pango, a system library
    except OSError as error:
        raise ValueError(f"no PDF: {error}; install the system packages of cluster/setup-node.sh") from error
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = truncated  # its import has Pillow take damaged radiographs for whole ones
    pdf = HTML(string=html).write_pdf()
    assert pdf is not None
    return pdf


def _part_html(part: Part) -> str:
    match part:
        case Text():
            return f'<p class="{part.kind}">{escape(part.text)}</p>'
        case Code():
            return f"<pre>{escape(part.text)}</pre>"
        case Picture():
            source = base64.b64encode(as_svg(part.figure)).decode()
            caption = escape(part.caption)
            return (
                f'<figure><img style="width: {part.width_percent}%" alt="{caption}" '
                f'src="data:image/svg+xml;base64,{source}"><figcaption>{caption}</figcaption></figure>'
            )
        case Table():
            note = f'<p class="muted">{escape(part.note)}</p>' if part.note else ""
            return f'<h3>{escape(part.title)}</h3><div class="scroll">{as_html(part)}</div>{note}'
