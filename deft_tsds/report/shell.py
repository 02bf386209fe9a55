"""What every page is wrapped in: one file that needs no network and trusts no text of the data."""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from deft_tsds.report.figures import colour
from deft_tsds.running.secrets import masked_text
from deft_tsds.runs import atomic_write

# Line feeds and tabs are layout; other control characters and lone surrogates are no text in HTML or in UTF-8.
_UNPRINTABLE = {
    code: "\N{REPLACEMENT CHARACTER}"
    for code in (*range(0x20), *range(0x7F, 0xA0), *range(0xD800, 0xE000))
    if chr(code) not in "\t\n\r"
}


def render(
    template: str,
    *,
    filters: Mapping[str, Callable[..., Any]],
    plots: Mapping[str, Any],
    styles: Sequence[str],
    scripts: Sequence[str],
    notices: Sequence[str | None] = (),
    **values: Any,
) -> str:
    """A page as HTML.

    Args:
      template: name of a file beside this one.
      filters: what the template calls values by, beside `count`, `clipped` and `colour`.
      plots: Plotly figures as plain JSON, by the id of their place in the page; None for one that is not shown.
      styles, scripts: names of files beside this one; where there is a figure, Plotly is there as text for page.js.
      notices: what must be said wherever these results are shown; None says nothing, and what is said is said once.
      values: what the template prints. Beside them it gets `plots`, `style`, `data`, `plotly`, `scripts` and
        `policy`.
    """
    from plotly.offline import get_plotlyjs

    environment = Environment(
        loader=FunctionLoader(_source),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(count=count, clipped=clipped, colour=colour, **filters)
    if isinstance(values.get("command"), str):
        values["command"] = masked_text(values["command"])
    texts = [_script(_source(name)) for name in scripts]
    plotly = _script(get_plotlyjs()) if any(plots.values()) else None
    return environment.get_template(template).render(
        **values,
        notices=list(dict.fromkeys(filter(None, notices))),
        plots=plots,
        style=Markup("".join(map(_source, styles))),
        data=_json(plots),
        scripts=texts,
        plotly=plotly,
        policy=_policy([plotly, *texts] if plotly else texts),
    )


def write(page: str, path: str | Path) -> Path:
    """Write a page, whole or not at all, and return its path."""
    path = Path(path)
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8", newline="\n")
    return path


def count(number: int) -> str:
    """A whole number with thin spaces between thousands."""
    return f"{number:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def clipped(text: str, limit: int) -> str:
    """The beginning of a text, cut at a space where one is near."""
    if len(text) <= limit:
        return text
    head = text[:limit]
    space = head.rfind(" ", limit - 40)
    return (head[:space] if space > 0 else head).rstrip() + "…"


def _printable(value: Any) -> Any:
    """Applied by Jinja to every value that the template prints, before it is escaped."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return value.translate(_UNPRINTABLE)
    return value


def _json(value: Any) -> Markup:
    """JSON that cannot end the script element that holds it: `<`, `>`, `&` as escapes, and nothing beyond ASCII."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _source(name: str) -> str:
    return importlib.resources.files("deft_tsds.report").joinpath(name).read_text(encoding="utf-8")


def _script(text: str) -> Markup:
    return Markup(text.replace("\r\n", "\n").replace("\r", "\n"))


def _policy(scripts: Sequence[Markup]) -> str:
    """A content security policy that allows these scripts by hash, inline styles, data images, and nothing else."""
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" for script in scripts
    )
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; "
        "connect-src 'none'; object-src 'none'; base-uri 'none'; form-action 'none'"
    )
