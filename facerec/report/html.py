"""One HTML file that holds everything: figures, faces, style and script.

A page opens from disk with no network; its content security policy forbids every request.
Whatever a user's data says (a person's name may be `</script>`) reaches the page only through
`escape` or `to_json`. Colours are named once, in PALETTE, each for light and for dark; figures are
drawn in the light ones, and the script swaps them when the theme changes.
"""

from __future__ import annotations

import base64
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from functools import cache
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
from PIL import Image
from plotly.offline import get_plotlyjs

from facerec.runtime.files import write_bytes

# Colours told apart with the common colour-vision deficiencies (after Okabe and Ito), darkened for
# a light ground and lightened for a dark one so that text in them stays readable.
PALETTE: dict[str, tuple[str, str]] = {
    "ground": ("#f6f7f9", "#11151b"),
    "surface": ("#ffffff", "#191f27"),
    "raised": ("#eef1f5", "#242c37"),
    "line": ("#dfe3e9", "#323c49"),
    "ink": ("#1b2330", "#e8ebf0"),
    "muted": ("#596375", "#9ea9b9"),
    "faint": ("#b3bbc7", "#566173"),
    "blue": ("#0069a8", "#5cb8f0"),
    "vermilion": ("#c4500c", "#f58f55"),
    "green": ("#00805e", "#35c79b"),
    "gold": ("#a97400", "#edbc4a"),
    "purple": ("#a3458d", "#e08fcb"),
    "sky": ("#3d9bd1", "#9ad7fb"),
    "indigo": ("#4b4fc0", "#a3a6ff"),
    "brown": ("#7d4f3a", "#c9a28d"),
}
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


def light(name: str) -> str:
    """The light colour of a palette entry: what figures are drawn in."""
    return PALETTE[name][0]


@cache
def asset(name: str) -> str:
    """Text of a file that ships beside this module."""
    return (files("facerec.report") / "assets" / name).read_text(encoding="utf-8")


def to_json(value: Any) -> str:
    """JSON that is safe between `<script>` tags: `<`, `>` and `&` are written as escapes.

    Raises:
        ValueError: if a number is not finite, which JSON cannot hold.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return _script_safe(text)


def _script_safe(text: str) -> str:
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    # A lone surrogate (a file name that is not UTF-8) could not be written to a UTF-8 file.
    return re.sub("[\ud800-\udfff]", "\ufffd", text)


def figure_block(figure: go.Figure, key: str, description: str = "") -> str:
    """The place of a figure on a page: an element, and the figure as JSON beside it.

    Args:
        figure: drawn in the light colours of PALETTE.
        key: unique on the page, letters, digits and dashes.
        description: what a screen reader says in its place.
    """
    height = figure.layout.height or 420
    return (
        f'<div class="figure" id="{key}" role="img" aria-label="{escape(description)}" '
        f'data-figure="{key}-json" style="min-height:{height}px"></div>'
        f'<script type="application/json" id="{key}-json">{_script_safe(figure.to_json())}</script>'
    )


def document(
    title: str,
    body: str,
    *,
    subtitle: str = "",
    data: Mapping[str, Any] | None = None,
    styles: str = "",
    scripts: Sequence[str] = (),
) -> str:
    """A whole HTML page.

    Args:
        title, subtitle: plain text.
        body: HTML, already escaped.
        data: what the scripts read, under the id `page-data`.
        styles: CSS after the page's own, such as that of `sprite_css`.
        scripts: names of further assets to run after page.js.
    """
    dark = {pair[0]: pair[1] for pair in PALETTE.values()}
    parts = {
        "title": escape(title),
        "subtitle": f"<p class='subtitle'>{escape(subtitle)}</p>" if subtitle else "",
        "body": body,
        "data": to_json({"palette": {k: v[0] for k, v in PALETTE.items()}, "dark": dark}),
        "page_data": to_json(data or {}),
        "style": f"{_palette_css()}{asset('page.css')}{styles}",
        "plotly": get_plotlyjs(),
        "script": "\n".join(asset(name) for name in ("page.js", *scripts)),
    }
    page = re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], asset("page.html"))
    return re.sub("[\ud800-\udfff]", "\ufffd", page)


def _palette_css() -> str:
    def rules(theme: int) -> str:
        return "".join(f"--{name}:{pair[theme]};" for name, pair in PALETTE.items())

    dark = f"{rules(1)}color-scheme:dark;"
    return (
        f":root{{{rules(0)}color-scheme:light;--font:{FONT}}}"
        f"@media(prefers-color-scheme:dark){{:root:not([data-theme=light]){{{dark}}}}}"
        f":root[data-theme=dark]{{{dark}}}\n"
    )


def sprite_css(
    images: np.ndarray, prefix: str, *, size: int = 64, quality: int = 72, per_sheet: int = 1024
) -> tuple[str, dict[str, Any]]:
    """Pack pictures into WebP sheets inside a style sheet.

    Args:
        images: (N, H, W, 3) uint8 RGB.
        prefix: of the CSS classes, one a sheet: `<prefix>-0`, `<prefix>-1` ...
        size: longest side of a thumbnail in pixels; smaller pictures are kept as they are.
        quality: of the WebP encoding, 0 to 100.
        per_sheet: pictures a sheet; a side of a WebP may not pass 16,383 pixels.

    Returns:
        The CSS, and where picture i lies: `{"prefix", "perSheet", "columns"}`, where sheet
        `i // perSheet` holds rows of `columns` pictures (see `sprite`).
    """
    columns = max(1, min(math.isqrt(per_sheet), math.ceil(math.sqrt(max(len(images), 1)))))
    per_sheet = columns * math.isqrt(per_sheet)
    rules = []
    for number, start in enumerate(range(0, len(images), per_sheet)):
        sheet = _sheet(images[start : start + per_sheet], columns, per_sheet // columns, size)
        uri = image_uri(sheet, quality)
        rules.append(f".{prefix}-{number}{{background-image:url({uri})}}")
    layout = {"prefix": prefix, "perSheet": per_sheet, "columns": columns}
    return "\n".join(rules), layout | {"rows": per_sheet // columns}


def _sheet(images: np.ndarray, columns: int, rows: int, size: int) -> Image.Image:
    scale = min(1.0, size / max(images.shape[1:3]))
    height, width = (max(1, round(side * scale)) for side in images.shape[1:3])
    sheet = Image.new("RGB", (columns * width, rows * height), "#888")
    for place, pixels in enumerate(images):
        face = Image.fromarray(np.ascontiguousarray(pixels))
        if scale < 1:
            face = face.resize((width, height), Image.Resampling.LANCZOS)
        sheet.paste(face, (place % columns * width, place // columns * height))
    return sheet


def image_uri(picture: Image.Image, quality: int | None = 80) -> str:
    """A picture as a WebP data URI; quality None keeps every value as it is."""
    buffer = io.BytesIO()
    options = {"lossless": True} if quality is None else {"quality": quality, "method": 4}
    picture.save(buffer, "WEBP", **options)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def sprite(layout: Mapping[str, Any], index: int, label: str) -> str:
    """HTML of one picture out of the sheets of `sprite_css`; `label` is plain text."""
    number, place = divmod(index, layout["perSheet"])
    row, column = divmod(place, layout["columns"])
    x, y = (
        100 * at / max(n - 1, 1) for at, n in ((column, layout["columns"]), (row, layout["rows"]))
    )
    return (
        f'<span class="face {layout["prefix"]}-{number}" role="img" aria-label="{escape(label)}" '
        f'title="{escape(label)}" style="background-size:{100 * layout["columns"]}% '
        f'{100 * layout["rows"]}%;background-position:{x:.4f}% {y:.4f}%"></span>'
    )


def write_html(
    content: go.Figure | Sequence[go.Figure] | str, path: str | Path, title: str = "facerec"
) -> Path:
    """Write figures, or a page made by `plots`, as one file that needs no network.

    The file appears whole or not at all: it is written under another name first, then renamed.

    Args:
        content: a figure, several figures, or a whole page as text (its title is its own).
        path: of the file; missing folders are made.
        title: heading of a page made of figures.

    Returns:
        The path.

    Raises:
        InputError: if the file cannot be written.
    """
    page = content if isinstance(content, str) else _figure_page(content, title)
    path = Path(path)
    write_bytes(path, page.encode("utf-8", "backslashreplace"))
    return path


def _figure_page(content: go.Figure | Sequence[go.Figure], title: str) -> str:
    figures = [content] if isinstance(content, go.Figure) else list(content)
    blocks = (figure_block(figure, f"figure-{n}", title) for n, figure in enumerate(figures))
    return document(title, "".join(f'<section class="card">{block}</section>' for block in blocks))
