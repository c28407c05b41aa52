"""The report as one HTML page that needs nothing else: style and plots are inside, and there is no script."""

from typing import Final

from pipeline.backtest.report import sections
from pipeline.backtest.report.content import ReportContent
from pipeline.backtest.report.markup import Markup, element, join
from pipeline.backtest.report.trainings import trainings
from pipeline.backtest.report.wording import number, partial_sentence, with_raised

TITLE: Final = "Backtest report"
_STYLE: Final = """
:root { color-scheme: light dark; --ink: #1f2328; --quiet: #57606a; --ground: #ffffff; --line: #d0d7de; --band: #f6f8fa;
  --warn: #fff8c5; --link: #0550ae; --shade: #57606a80; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --quiet: #9da7b1; --ground: #0d1117; --line: #3d444d;
  --band: #161b22; --warn: #3b2f00; --link: #79b8ff; --shade: #e6edf380; } }
body { margin: 0 auto; max-width: 66rem; padding: 1rem 1.25rem 4rem; background: var(--ground); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; }
h1 { margin-bottom: 0; } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); } h3 { margin-top: 1.75rem; }
a { color: var(--link); } p.quiet { color: var(--quiet); margin-top: 0.25rem; }
p.verdict { font-size: 1.2rem; margin: 1rem 0; }
.warning { background: var(--warn); border-left: 4px solid #9a6700; padding: 0.5rem 1rem; margin: 1rem 0; }
figure { margin: 1rem 0; } figure svg { max-width: 100%; height: auto; } figcaption { color: var(--quiet); }
.scroll { overflow-x: auto; margin: 1rem 0; }
.scroll { background: linear-gradient(90deg, var(--ground) 60%, transparent) left / 3rem 100% no-repeat local,
  linear-gradient(270deg, var(--ground) 60%, transparent) right / 3rem 100% no-repeat local,
  linear-gradient(90deg, var(--shade), transparent) left / 1rem 100% no-repeat,
  linear-gradient(270deg, var(--shade), transparent) right / 1rem 100% no-repeat; }
.scroll::-webkit-scrollbar, figure::-webkit-scrollbar { height: 0.6rem; }
.scroll::-webkit-scrollbar-thumb, figure::-webkit-scrollbar-thumb { background: var(--quiet); border-radius: 0.3rem; }
table { border-collapse: collapse; font-size: 0.9rem; }
caption { text-align: left; font-weight: 600; padding: 0.25rem 0; }
th, td { padding: 0.2rem 0.65rem; border-bottom: 1px solid var(--line); vertical-align: top; }
thead th { background: var(--band); } th.text, td.text { text-align: left; } tbody th { font-weight: 400; }
tbody th { white-space: nowrap; }
th.number, td.number { text-align: right; font-variant-numeric: tabular-nums; } td.number { white-space: nowrap; }
tbody th { position: sticky; left: 0; background: var(--ground); }
td small { color: var(--quiet); } summary { cursor: pointer; } nav ul { columns: 2; }
@media (max-width: 40rem) { body { padding: 0.75rem 0.75rem 3rem; } nav ul { columns: 1; }
  tbody th { white-space: normal; min-width: 7rem; max-width: 9rem; overflow-wrap: anywhere; }
  figure { overflow-x: auto; } figure svg { max-width: none; width: 31rem; } }
@media (max-width: 32rem) { figcaption::after { content: " Scroll the plot sideways to see all of it."; } }
@page { margin: 15mm; }
@media print { :root { color-scheme: light; --ink: #000; --quiet: #444; --ground: #fff; --line: #999; --band: #eee;
  --warn: #fff; --link: #000; }
  body { max-width: none; padding: 0; font-size: 10pt; } nav { display: none; }
  .scroll, figure { overflow: visible; background: none; } figcaption::after { content: none; }
  table { font-size: 7.5pt; } th, td { padding: 0.1rem 0.35rem; }
  h2, h3, caption { break-after: avoid; } figure, tr, .scroll { break-inside: avoid; }
  thead { display: table-header-group; }
  details:not([open]) { display: none; } }
"""


def page(content: ReportContent) -> str:
    """The whole page."""
    content = with_raised(content)
    parts = [
        ("summary", "Summary", sections.summary(content)),
        ("labels", "What the labels can say", sections.labels(content)),
        *(
            [("ranking", "Fraud types and learning", sections.ranking(content))]
            if any(variant.fraud_types or variant.prequential for variant in content.variants)
            else []
        ),
        *([("comparison", "Side by side", sections.comparisons(content))] if content.comparisons else []),
        *(
            [("versions", "Trained versions", trainings(content))]
            if any(variant.versions for variant in content.variants)
            else []
        ),
        ("money", "Thresholds and money", sections.money(content)),
        ("time", "By day and by amount", sections.time(content)),
        ("scores", "Scores", sections.scores(content)),
        ("reasons", "Reasons", sections.reasons(content)),
        ("misses", "Costliest misses", sections.misses(content)),
        ("drift", "Feature drift", sections.drift(content)),
        ("asked", "What was asked", sections.asked(content)),
    ]
    contents = element("ul", *(element("li", element("a", title, href=f"#{name}")) for name, title, _ in parts))
    names = " and ".join(variant.name for variant in content.variants)
    main = element(
        "main",
        element("h1", TITLE),
        element(
            "p",
            f"{names}: {number(content.transactions)} transactions of {number(content.cards)} cards, "
            f"{content.from_time} to {content.until_time}, after {number(content.warm_up_days, 1)} days of warm-up. "
            f"Amounts are in {content.base_currency}, times and days in UTC.",
            class_="quiet",
        ),
        *([element("p", partial_sentence(content), class_="warning", role="note")] if content.partial else []),
        *(element("p", warning, class_="warning", role="note") for warning in content.warnings),
        sections.opening(content),
        element("nav", contents, aria_label="Contents"),
        *(
            element("section", element("h2", title, id=f"{name}-title"), body, id=name, aria_labelledby=f"{name}-title")
            for name, title, body in parts
        ),
    )
    state = " (partial)" if content.partial else ""
    head = join(
        [
            Markup('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'),
            element("title", f"{TITLE}{state}: {names}, {content.from_time[:10]} to {content.until_time[:10]}"),
            element("style", Markup(_STYLE)),
        ]
    )
    return f"<!DOCTYPE html>\n{element('html', element('head', head), element('body', main), lang='en')}\n"
