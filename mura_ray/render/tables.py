"""Tables whose cells may be estimates: for people as text, HTML and LaTeX, for programs as CSV."""

from dataclasses import dataclass
from html import escape
from typing import Any

import pandas as pd

from mura_ray.stats.estimates import Estimate

NOT_ESTIMABLE = "n.e."


@dataclass(frozen=True, eq=False)
class Table:
    """A table of a report.

    Attributes:
        name: of its files.
        title: one line.
        frame: named columns; cells are text, counts, numbers, estimates or None.
        note: what a reader must know to read it.
    """

    name: str
    title: str
    frame: pd.DataFrame
    note: str = ""


def shown(frame: pd.DataFrame) -> pd.DataFrame:
    """The cells as a person reads them: three decimals, an interval in brackets; what is too small as < 0.001."""
    return frame.apply(lambda column: column.map(cell_text))


def cell_text(value: Any) -> str:
    """One cell."""
    if value is None or (isinstance(value, float) and pd.isna(value)):
        return NOT_ESTIMABLE
    if isinstance(value, Estimate):
        if value.value is None:
            return NOT_ESTIMABLE
        if value.low is None or value.high is None:
            return f"{value.value:.3f} [{NOT_ESTIMABLE}]"
        return f"{value.value:.3f} [{value.low:.3f}, {value.high:.3f}]"
    if isinstance(value, float):
        return "< 0.001" if 0 < value < 0.0005 else f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def flat(frame: pd.DataFrame) -> pd.DataFrame:
    """Each column of estimates as three, the last two with `_low` and `_high`; what is not estimable is empty."""
    columns: dict[str, Any] = {}
    for name in frame.columns:
        cells = list(frame[name])
        key = str(name)
        if any(isinstance(cell, Estimate) for cell in cells):
            for suffix, field in (("", "value"), ("_low", "low"), ("_high", "high")):
                columns[key + suffix] = [getattr(cell, field) if isinstance(cell, Estimate) else cell for cell in cells]
        else:
            columns[key] = cells
    return pd.DataFrame(columns)


def as_csv(table: Table) -> bytes:
    """Numbers in full."""
    return flat(table.frame).to_csv(index=False).encode()


def as_text(table: Table) -> str:
    """For a terminal."""
    return shown(table.frame).to_string(index=False, line_width=10_000)


def as_html(table: Table) -> str:
    """A `table` element; columns of numbers are right-aligned by the class `number`."""
    numeric = [not all(isinstance(cell, str) for cell in table.frame[name]) for name in table.frame.columns]

    def row(cells: list[Any], tag: str) -> str:
        starts = (f'<{tag} class="number">' if is_number else f"<{tag}>" for is_number in numeric)
        made = (f"{start}{escape(str(cell))}</{tag}>" for start, cell in zip(starts, cells, strict=True))
        return f"<tr>{''.join(made)}</tr>"

    body = "".join(row(list(cells), "td") for cells in shown(table.frame).itertuples(index=False))
    return f"<table><thead>{row(list(table.frame.columns), 'th')}</thead><tbody>{body}</tbody></table>"


_LATEX = {"&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}",
          "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}  # fmt: skip


def as_latex(table: Table) -> bytes:
    """A `table` environment with booktabs' rules; the note is in its caption."""

    def line(cells: list[Any]) -> str:
        return " & ".join("".join(_LATEX.get(letter, letter) for letter in str(cell)) for cell in cells) + r" \\"

    rows = [line(list(cells)) for cells in shown(table.frame).itertuples(index=False)]
    caption = line([f"{table.title}. {table.note}" if table.note else table.title])[:-3]
    columns = "l" + "r" * (len(table.frame.columns) - 1)
    lines = [
        r"\begin{table}", r"\centering", rf"\caption{{{caption}}}", rf"\label{{tab:{table.name}}}",
        rf"\begin{{tabular}}{{{columns}}}", r"\toprule", line(list(table.frame.columns)), r"\midrule", *rows,
        r"\bottomrule", r"\end{tabular}", r"\end{table}",
    ]  # fmt: skip
    return ("\n".join(lines) + "\n").encode()
