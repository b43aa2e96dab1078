"""Write the table of projects into README.md, from what packages/*/pyproject.toml say."""

import re
from pathlib import Path

from workspace import ROOT, Member, projects

START, END = "<!-- projects: written by tools/readme_table.py -->\n", "<!-- end of projects -->"


def main() -> None:
    readme = ROOT / "README.md"
    readme.write_text(with_table(readme.read_text(encoding="utf-8"), ROOT), encoding="utf-8")


def with_table(text: str, root: Path) -> str:
    """Return the README's text with the table between its two marks made anew."""
    head, start, rest = text.partition(START)
    _, end, tail = rest.partition(END)
    if not (start and end):
        raise ValueError(f"README.md has lost the marks of the table of projects: {START.strip()} ... {END}")
    return head + START + table(root) + END + tail


def table(root: Path) -> str:
    """Return the table of the projects that exist."""
    rows = ["| Project | What it trains | Built on |", "| --- | --- | --- |"]
    for member in projects(root):
        link = f"[{member.name}]({member.path.relative_to(root)})"
        rows.append(f"| {link} | {member.pyproject['project']['description']} | {', '.join(backends(member))} |")
    return "\n".join(rows) + "\n"


def backends(member: Member) -> list[str]:
    """Return what a project pins exactly, as `name version`."""
    pins = (re.fullmatch(r"([\w.-]+)(?:\[.*\])?==([\w.+]+)", requirement) for requirement in member.dependencies)
    return [f"{pin[1]} {pin[2]}" for pin in pins if pin]


if __name__ == "__main__":
    main()
