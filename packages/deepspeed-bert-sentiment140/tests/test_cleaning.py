"""Cleaning: what each rule changes, what it leaves alone, and what the report says of it."""

import pytest
from deepspeed_bert_sentiment140.cleaning import RULES, Cleaner, Report


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("@joe hi @_ann_1!", "@user hi @user!"),
        ("mail me: joe@home.org, 3 @ 5", "mail me: joe@home.org, 3 @ 5"),
        ("see http://bit.ly/x?a=1&b and www.site.com/y now", "see http and http now"),
        ("sooooo goooood, LOOOOL", "soo good, LOOL"),
        ("too good, 1000000 things... !!!!", "too good, 1000000 things... !!!!"),
        ("you &amp; me &lt;3 &quot;now&quot; caf&#233; &#x41;", 'you & me <3 "now" café A'),
        ("escaped twice &amp;lt;3 and &amp;amp;", "escaped twice <3 and &"),
        ("R&B; &xyz; AT&T", "R&B; &xyz; AT&T"),
        ("  many \t spaces\n here ", "many spaces here"),
        ("@user already, http too", "@user already, http too"),
        ("", ""),
    ],
)
def test_all_rules(before: str, after: str) -> None:
    assert Cleaner(tuple(RULES))(before) == after


def test_cleaning_twice_changes_nothing_more() -> None:
    cleaner = Cleaner(tuple(RULES))
    once = cleaner("@joe sooo &amp;quot;x&amp;quot; http://a.b")
    assert cleaner(once) == once


def test_only_the_chosen_rules_apply_in_a_fixed_order() -> None:
    assert Cleaner(["users"])("@joe soooo &amp;") == "@user soooo &amp;"
    assert Cleaner(["repeats", "entities"]).rules == ["entities", "repeats"]


def test_report_counts_tweets_places_and_keeps_examples() -> None:
    cleaner = Cleaner(tuple(RULES))
    for text in ("@a @b hello", "nothing here", "@user http", "soooo @c"):
        cleaner(text)
    report = cleaner.report.to_dict()
    assert report["num_tweets"] == 4
    assert report["rules"]["users"] == {
        "tweets": 2,
        "places": 3,
        "examples": [["@a @b hello", "@user @user hello"], ["soooo @c", "soooo @user"]],
    }
    assert report["rules"]["repeats"]["tweets"] == 1
    assert "links" not in report["rules"], "a link that is http already is no change"


def test_reports_add_up() -> None:
    whole, first, second = Report(), Cleaner(["users"]), Cleaner(["users"])
    for i in range(3):
        first(f"@a{i}")
        second(f"@b{i} @c")
    for part in (first, second):
        whole.add(part.report.to_dict())
    assert whole.num_tweets == 6
    assert whole.rules["users"]["tweets"] == 6
    assert whole.rules["users"]["places"] == 9
    assert len(whole.rules["users"]["examples"]) == 3
