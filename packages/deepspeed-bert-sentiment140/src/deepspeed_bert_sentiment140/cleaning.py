"""What is written differently before a tweet is tokenised, rule by rule, and a report of what that changed.

Names, links and repeated letters make a vocabulary endless and say little; Go et al. (2009) replaced the same three in
their paper on this data set. The words that take their place are those of Barbieri et al. (2020), arXiv 2010.12421.
"""

import html
import re
from collections.abc import Callable, Sequence
from typing import Any

EXAMPLES = 3  # kept of each rule

Replacement = str | Callable[[re.Match[str]], str]
# In the order in which they are applied.
RULES: dict[str, tuple[re.Pattern[str], Replacement]] = {
    # Some were escaped twice: &amp;lt;3
    "entities": (
        re.compile(r"&(?:amp;)*(?:#\d+|#x[\da-f]+|[a-z]\w*);", re.IGNORECASE),
        lambda match: html.unescape(html.unescape(match[0])),
    ),
    "links": (re.compile(r"(?:https?://|www\.)\S+", re.IGNORECASE), "http"),
    "users": (re.compile(r"(?<![\w@])@\w+"), "@user"),
    # sooooo and sooo become soo: longer than the word, but one spelling for all of them.
    "repeats": (re.compile(r"([^\W\d_])\1{2,}", re.IGNORECASE), r"\1\1"),
}


class Report:
    """How many tweets each rule has changed, how often, and a few examples."""

    def __init__(self) -> None:
        self.num_tweets = 0
        self.rules: dict[str, dict[str, Any]] = {}

    def note(self, rule: str, places: int, before: str, after: str) -> None:
        """Count a tweet that `rule` has changed at so many places."""
        entry = self.rules.setdefault(rule, {"tweets": 0, "places": 0, "examples": []})
        entry["tweets"] += 1
        entry["places"] += places
        if len(entry["examples"]) < EXAMPLES:
            entry["examples"].append([before, after])

    def add(self, other: dict[str, Any]) -> None:
        """Add what `to_dict` gave of a report on other tweets."""
        self.num_tweets += other["num_tweets"]
        for rule, counts in other["rules"].items():
            entry = self.rules.setdefault(rule, {"tweets": 0, "places": 0, "examples": []})
            entry["tweets"] += counts["tweets"]
            entry["places"] += counts["places"]
            entry["examples"] = (entry["examples"] + counts["examples"])[:EXAMPLES]

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON takes it."""
        return {"num_tweets": self.num_tweets, "rules": self.rules}


class Cleaner:
    """Applies the chosen rules and keeps the report.

    Args:
        rules: of `RULES`; they are applied in the order there, whatever their order here.
    """

    def __init__(self, rules: Sequence[str]) -> None:
        self.rules = [name for name in RULES if name in rules]
        self.report = Report()

    def __call__(self, text: str) -> str:
        """Return the text with the rules applied, and each run of white space a single space."""
        self.report.num_tweets += 1
        for rule in self.rules:
            pattern, replacement = RULES[rule]
            after, places = pattern.subn(replacement, text)
            # A link or a name that is written already as it is going to be is no change.
            if places and after != text:
                self.report.note(rule, places, text, after)
                text = after
        return " ".join(text.split())
