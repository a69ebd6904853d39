"""One HTML file with all results: tables, figures and the commands that made them. It needs no server and no network.

python benchmarks/page.py benchmarks/results docs/images --out results.html
"""

import argparse
import base64
import csv
from html import escape
from pathlib import Path

RECORD = "command.txt"  # beside the results of benchmarks/reproduce.py
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1100px; margin: 2em auto; padding: 0 1em }
h2 { margin-top: 2.5em; border-bottom: 1px solid #ccc } img { max-width: 100%; margin: .5em 0 }
table { border-collapse: collapse } td, th { padding: .15em .8em; text-align: right; border-bottom: 1px solid #ddd }
td:nth-child(-n+2), th:nth-child(-n+2) { text-align: left } pre { background: #f4f4f4; padding: .6em; overflow: auto }
"""


def section(folder: Path) -> str:
    """What lies directly in a folder, "" if that is nothing."""
    parts = []
    record = folder / RECORD
    if record.exists():
        parts.append(f"<pre>{escape(record.read_text())}</pre>")
    parts += [table(path) for path in sorted(folder.glob("summary.csv"))]
    for path in sorted(folder.glob("*.png")):
        data = base64.b64encode(path.read_bytes()).decode()
        parts.append(
            f'<p>{escape(path.stem)}<br><img alt="{escape(path.stem)}" src="data:image/png;base64,{data}"></p>'
        )
    return f"<h2>{escape(str(folder))}</h2>\n" + "\n".join(parts) if parts else ""


def table(path: Path) -> str:
    """A CSV as a table."""
    with open(path) as file:
        header, *rows = csv.reader(file)
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>\n{body}</table>"


def write_page(folders: list[Path], out: Path) -> None:
    """Write the page.

    :param folders: they and all below them are shown
    :param out: the HTML file
    :raises ValueError: if a folder is not there
    """
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"folders={str(folder)!r} is not allowed: there is no such folder")
    below = [path for folder in folders for path in (folder, *sorted(p for p in folder.rglob("*") if p.is_dir()))]
    sections = "\n".join(filter(None, map(section, below)))
    title = "sb3_flow: results"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>\n'
        f"<body><h1>{title}</h1>\n{sections}\n</body></html>\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path("results.html"))
    args = parser.parse_args()
    try:
        write_page(args.folders, args.out)
    except ValueError as error:
        parser.error(str(error))
    print(args.out)


if __name__ == "__main__":
    main()
