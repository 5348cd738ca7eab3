"""Bring a page's tables of methods and strategies up to date.

python -m jaxforget.methods README.md
"""

import pathlib
import re
import sys

from jaxforget import strategies
from jaxforget.engine.files import write_atomically
from jaxforget.methods.catalogue import markdown, table

TABLES = {"methods": table, "strategies": strategies.table}


def between(name: str) -> re.Pattern[str]:
    """What stands between the marks of one table, the marks included."""
    return re.compile(f"<!-- {name} -->\n(.*?)<!-- end -->", re.DOTALL)


def main(path: str) -> None:
    """Replace what stands between the marks of the page at `path`."""
    page = pathlib.Path(path)
    text, counts = page.read_text(), {}
    for name, rows in TABLES.items():
        new = f"<!-- {name} -->\n{markdown(rows())}\n<!-- end -->"
        text, counts[name] = between(name).subn(lambda _, new=new: new, text)
    if set(counts.values()) != {1}:
        sys.exit(f"{page}: needs one place for each table, has {counts}")
    write_atomically(page, text)


if __name__ == "__main__":
    main(*sys.argv[1:])
