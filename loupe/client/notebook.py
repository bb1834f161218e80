"""Show results in a notebook: the picture, the heat map over it, the label, and a bar for each score.

    sheet([figure(name, picture, heatmap, label, confidence, doubt, scores), …])      # HTML

It stands for itself: pictures are small JPEGs inside the HTML, and no script runs. A picture that was given by its
address and computed elsewhere is shown from there, by the browser.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping
from html import escape
from itertools import islice

from PIL import Image

from loupe.client.picture import Picture
from loupe.errors import LoupeError
from loupe.images.api import decode, upright_size
from loupe.prediction import percent

SIDE = 224  # px, of a picture's longer side
MOST_SCORES, MOST_FIGURES = 5, 60
_CELL = "display:inline-block;vertical-align:top;width:240px;margin:6px;font:13px/1.4 system-ui,sans-serif"
_BAR = "height:6px;border-radius:3px;background:#ea580c;min-width:1px;width:{:.1f}%"
_LAYER = "position:absolute;left:0;top:0;width:100%;height:100%"


def sheet(figures: Iterable[str], count: int = 1) -> str:
    """Return the first figures of so many as one piece of HTML. The rest is not even made."""
    more = f"<p>… and {count - MOST_FIGURES:,} more</p>" if count > MOST_FIGURES else ""
    return f"<div>{''.join(islice(figures, MOST_FIGURES))}{more}</div>"


def figure(
    name: str,
    picture: Picture,
    heatmap: Image.Image | None,
    label: str,
    confidence: float,
    doubt: str,
    scores: Mapping[str, float],
) -> str:
    # The picture, and the heat map over it.
    try:
        image = f'<img src="{_source(picture)}" alt="" style="display:block;max-width:224px;max-height:224px">'
        heat = f'<img src="{_url(heatmap, "PNG")}" alt="" style="{_LAYER}">' if heatmap else ""
        image = f'<div style="position:relative;display:inline-block">{image}{heat}</div>'
    except LoupeError as error:  # the file is gone by now
        image = f"<i>{escape(str(error))}</i>"
    # What is said of it.
    rows = "".join(_bar(each, score) for each, score in list(scores.items())[:MOST_SCORES])
    title = f'<b style="font-size:16px">{escape(label)}</b> {percent(confidence)}, {escape(doubt)}'
    return f'<div style="{_CELL}">{image}<div>{title}</div>{rows}<small>{escape(name)}</small></div>'


def _bar(label: str, score: float) -> str:
    share = f'<span style="float:right">{percent(score)}</span>'
    return f'<div>{escape(label)} {share}</div><div style="{_BAR.format(score * 100)}"></div>'


def failure(text: str) -> str:
    return f'<div style="{_CELL};color:#b91c1c">{escape(text)}</div>'


def _source(picture: Picture) -> str:
    """Return what the browser shows: the address itself, or the picture made small."""
    if picture.address:
        return escape(picture.address, quote=True)
    data = picture.read()
    height, width = upright_size(data)
    scale = min(1.0, SIDE / max(height, width))
    small = decode(data, max(1, round(height * scale)), max(1, round(width * scale)))
    return _url(Image.fromarray(small), "JPEG")


def _url(image: Image.Image, kind: str) -> str:
    file = io.BytesIO()
    image.save(file, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
