"""HTML from functions: what is not markup yet is escaped."""

from collections.abc import Iterable, Sequence
from html import escape


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def element(tag: str, *children: str, **attributes: str) -> Markup:
    """An element; a trailing underscore of an attribute's name is left out, others become hyphens.

    >>> element("p", "a < b", class_="note")
    '<p class="note">a &lt; b</p>'
    """
    written = "".join(f' {_name(name)}="{escape(value)}"' for name, value in attributes.items())
    return Markup(f"<{tag}{written}>{join(children)}</{tag}>")


def join(parts: Iterable[str]) -> Markup:
    """Concatenate parts, and escape plain text."""
    return Markup("".join(part if isinstance(part, Markup) else escape(part) for part in parts))


def table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, texts: int = 1) -> Markup:
    """A table with a caption; the first column names the row, the first ``texts`` columns are texts, others figures."""
    head = [
        element("th", name, scope="col", class_="text" if at < texts else "number") for at, name in enumerate(columns)
    ]
    body = [
        element(
            "tr",
            element("th", row[0], scope="row", class_="text"),
            *(
                element("td", cell, class_="text" if at < texts else "number")
                for at, cell in enumerate(row[1:], start=1)
            ),
        )
        for row in rows
    ]
    inner = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", *head)),
        element("tbody", *body),
    )
    # A region that scrolls must be reachable by the keyboard, and so needs a name.
    return element("div", inner, class_="scroll", role="region", tabindex="0", aria_label=caption)


def _name(name: str) -> str:
    return name.rstrip("_").replace("_", "-")
