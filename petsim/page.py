"""Pieces of self-contained HTML pages: no scripts, no network, figures inline."""

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from data_recipes.errors import DataError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 150
CSS_DPI = 100


def destination(folder: Path, out: Path | None) -> Path:
    """Where a page about a folder goes: `out`, or report.html in the folder.

    Raises
    ------
    DataError
        A folder, or a file in a folder that does not exist.
    """
    file = folder / "report.html" if out is None else out
    if file.is_dir() or not file.parent.is_dir():
        raise DataError(f"--out {file.name}: name a file in a folder that exists")
    return file


def facts(pairs: Iterable[tuple[str, str]], dense: bool = False) -> str:
    """Names and values, in two columns or, `dense`, in lines."""
    items = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in pairs)
    return f"<dl class={'dense' if dense else 'facts'}>{items}</dl>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], left: Sequence[int] = ()) -> str:
    """Table of texts; columns in `left` are aligned so."""
    side = [" class=left" if k in left else "" for k in range(len(head))]
    top = "".join(f"<th{c}>{escape(h)}</th>" for c, h in zip(side, head, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{c}>{escape(v)}</td>" for c, v in zip(side, row, strict=True)) + "</tr>" for row in rows
    )
    kind = "wide" if len(head) > 6 else '"wide narrow"'
    return f"<div class={kind}><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"


def picture(figure: "Figure", alt: str, caption: str) -> str:
    """Figure as an inline PNG with its caption."""
    data = io.BytesIO()
    # Without this matplotlib's version would be in every picture, and pages of equal data would differ.
    figure.savefig(data, format="png", dpi=DPI, metadata={"Software": None})
    source = base64.b64encode(data.getvalue()).decode()
    width, height = (round(v * CSS_DPI) for v in figure.get_size_inches())
    return (
        f'<figure><img src="data:image/png;base64,{source}" width="{width}" height="{height}" alt="{escape(alt)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def page(title: str, body: str) -> str:
    """Whole page, which loads nothing and runs nothing."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body><main>\n{body}\n</main></body></html>\n"
    )


STYLE = """
:root{--ink:#1d232b;--soft:#66707c;--line:#dfe3e8;--accent:#1f5fa8}
*{box-sizing:border-box}
body{margin:0;background:#fff;color:var(--ink);font:14px/1.5 -apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,
"Liberation Sans",sans-serif;font-variant-numeric:tabular-nums}
main{max-width:1160px;margin:0 auto;padding:28px 20px 56px}
header{border-bottom:2px solid var(--ink);margin-bottom:20px}
.kicker{margin:0;color:var(--accent);font-weight:600;letter-spacing:.04em;font-size:12px;text-transform:uppercase}
h1{font-size:30px;line-height:1.2;margin:2px 0 4px;font-weight:650}
.lead{font-size:16px;color:var(--soft);margin:0 0 14px}
h2{font-size:21px;margin:34px 0 10px;font-weight:650}
h3{font-size:15px;margin:24px 0 8px}
h4{font-size:13px;margin:16px 0 6px}
section{border-top:1px solid var(--line);margin-top:36px}
.tag{font-size:12px;font-weight:500;color:var(--soft);border:1px solid var(--line);border-radius:3px;padding:1px 7px;
vertical-align:3px}
aside{border-left:4px solid var(--line);padding:9px 14px;margin:10px 0;background:#f6f7f9}
aside h2{font-size:14px;margin:0 0 2px}
aside p,aside ul{margin:0}
aside ul{padding-left:18px}
.warn{border-color:#c8501e;background:#fdf1ea}
.limit{border-color:#c79a1b;background:#fcf7e6}
.inline-warn{margin:4px 0;color:#a53f12;font-weight:600}
.facts{display:grid;grid-template-columns:1fr 1fr;column-gap:32px;margin:0 0 16px}
.facts div{display:grid;grid-template-columns:128px 1fr;gap:12px;border-bottom:1px solid var(--line);padding:4px 0}
.dense{columns:3;column-gap:28px;font-size:12px;margin:0 0 12px}
.dense div{display:flex;justify-content:space-between;gap:12px;break-inside:avoid;border-bottom:1px solid var(--line);
padding:1px 0}
dt{color:var(--soft)}
dd{margin:0;overflow-wrap:anywhere}
.dense dd{text-align:right}
.wide{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:13px}
th,td{padding:5px 10px;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
th{color:var(--soft);font-weight:600;font-size:12px;white-space:normal;vertical-align:bottom;
border-bottom:1px solid var(--ink)}
.narrow table{width:auto;min-width:55%}
th.left,td.left{text-align:left}
th:first-child,td:first-child{padding-left:0}
th:last-child,td:last-child{padding-right:0}
figure{margin:14px 0 20px}
img{max-width:100%;height:auto;display:block}
figcaption,.note{color:var(--soft);font-size:12.5px;margin:6px 0 0}
pre{font-size:11px;line-height:1.4;white-space:pre-wrap;overflow-wrap:anywhere;background:#f6f7f9;padding:10px}
code{font-size:12px;overflow-wrap:anywhere}
summary{cursor:pointer;color:var(--accent);margin-top:10px}
@media screen and (max-width:760px){.facts{grid-template-columns:1fr}.dense{columns:1}}
@media print{
@page{size:A4;margin:12mm}
body{font-size:10px;-webkit-print-color-adjust:exact;print-color-adjust:exact}
main{max-width:none;padding:0}
table,th{font-size:9px}
th,td{padding:3px 5px}
section{break-before:page;border-top:0;margin-top:0}
figure,table,aside{break-inside:avoid}
h2,h3,h4{break-after:avoid}
.facts div{grid-template-columns:90px 1fr}
.dense,figcaption,.note{font-size:8.5px}
}
"""
