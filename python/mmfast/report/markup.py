"""HTML and SVG that cannot be injected into: text is escaped unless it was made by `element`.

>>> from mmfast.report.markup import element
>>> element("p", "1 < 2 ", element("b", "so there"), class_="note")
'<p class="note">1 &lt; 2 <b>so there</b></p>'
"""

import html
from collections.abc import Iterable

_VOID = frozenset({"meta", "img", "br", "line", "rect", "circle", "path", "polyline"})


class Markup(str):
    """Text that is markup already. Only `element`, `joined` and constants of ours make it."""

    __slots__ = ()


def element(tag: str, *children: str | Markup, **attributes: str | float | None) -> Markup:
    """One element. `class_` is `class`, `a_b` is `a-b`; an attribute that is None is left out."""
    written = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{html.escape(_text(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    if tag in _VOID and not children:
        return Markup(f"<{tag}{written}/>")
    return Markup(f"<{tag}{written}>{joined(children)}</{tag}>")


def joined(children: Iterable[str | Markup], separator: str = "") -> Markup:
    """Children in a row, those escaped that are plain text."""
    return Markup(
        separator.join(
            c if isinstance(c, Markup) else html.escape(c, quote=False) for c in children
        )
    )


def table(headings: Iterable[str | Markup], rows: Iterable[Iterable[str | Markup]]) -> Markup:
    """A table; cells that read as numbers are set flush right by the style sheet's `num` class."""
    head = element("thead", element("tr", *(element("th", heading) for heading in headings)))
    body = element(
        "tbody",
        *(
            element(
                "tr",
                *(element("td", cell, class_="num" if _is_number(cell) else None) for cell in row),
            )
            for row in rows
        ),
    )
    return element("div", element("table", head, body), class_="scroll")


def _is_number(cell: str | Markup) -> bool:
    return (
        not isinstance(cell, Markup) and bool(cell) and cell[0] in "0123456789-" and len(cell) < 24
    )


def _text(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.6g}"
