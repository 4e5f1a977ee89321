"""Run benchmarks and put what they print into a page, between their markers: `make performance`.

`python benchmarks/fill.py docs/performance.md rounds overhead`: what benchmarks/rounds.py prints goes between `<!-- rounds -->`
and `<!-- /rounds -->`, and so on. One that fails stops the rest, and leaves the page as it was for it.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def filled(page: str, name: str, printed: str) -> str:
    """The page with `printed` between the markers of `name`. Raises SystemExit if there are no such markers."""
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->\n"
    if page.count(begin) != 1 or page.count(end) != 1:
        raise SystemExit(f"the page has no place for {name}: put the lines {begin.strip()} and {end.strip()} into it, once")
    before, rest = page.split(begin)
    return f"{before}{begin}\n{printed.strip()}\n\n{end}{rest.split(end)[1]}"


def main() -> None:
    """Fill the places that are named, one after the other."""
    path, *names = sys.argv[1:]
    for name in names:
        filled(Path(path).read_text(encoding="utf-8"), name, "")  # before a benchmark takes its minutes
    for name in names:
        command = [sys.executable, str(Path(__file__).parent / f"{name}.py")]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        print(done.stdout, flush=True)
        if done.returncode:
            raise SystemExit(f"{name}.py failed: its place in {path} is as it was")
        Path(path).write_text(filled(Path(path).read_text(encoding="utf-8"), name, done.stdout), encoding="utf-8")


if __name__ == "__main__":
    main()
