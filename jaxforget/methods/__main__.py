"""Bring a page's table of methods up to date: `python -m jaxforget.methods README.md`."""

import pathlib
import re
import sys

from jaxforget.engine.files import write_atomically
from jaxforget.methods import markdown

BEGIN, END = "<!-- methods -->\n", "<!-- end -->"


def main(path: str) -> None:
    """Replace what stands between the two marks of the page at `path`."""
    page = pathlib.Path(path)
    pattern = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)
    text, count = pattern.subn(lambda _: f"{BEGIN}{markdown()}\n{END}", page.read_text())
    if count != 1:
        sys.exit(f"{page}: has {count} tables between {BEGIN.strip()} and {END}; needs one")
    write_atomically(page, text)


if __name__ == "__main__":
    main(*sys.argv[1:])
