"""Training articles with some of their words changed, others in each epoch: deletion, swaps, synonyms, insertion.

The four operations of EDA (Wei and Zou 2019, arXiv 1901.11196). Where a text has no word with a known synonym, what
needs one falls back to a swap, so that every article is changed. Validation and test texts never are.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from trainyard_shared.datasets.tables import read_text
from trainyard_shared.errors import DataError

# Written for this project: words of the news that can stand for each other in most places.
SYNONYMS = """
said, stated, reported, announced
says, states, reports, announces
company, firm, corporation
companies, firms, corporations
big, large, huge
small, little, tiny
new, fresh, latest
buy, purchase, acquire
bought, purchased, acquired
sell, market, trade
profit, earnings, gains
rise, climb, increase
rose, climbed, increased
fall, drop, decline
fell, dropped, declined
win, victory, triumph
won, beat, triumphed
lost, lose, defeated
game, match, contest
team, side, squad
leader, head, chief
president, leader
minister, official
officials, authorities
troops, soldiers, forces
killed, slain
attack, assault, strike
talks, negotiations, discussions
deal, agreement, accord
plan, proposal, scheme
plans, intends, aims
help, aid, assist
start, begin, launch
started, began, launched
end, finish, close
show, reveal, display
showed, revealed, displayed
software, program, application
internet, web, online
computer, machine, pc
scientists, researchers, experts
study, research, survey
search, hunt, quest
fight, battle, struggle
country, nation, state
people, persons, citizens
home, house
money, cash, funds
price, cost
prices, costs
shares, stocks, equities
market, exchange
job, post, position
jobs, posts, positions
year, season
quick, fast, rapid
strong, powerful, solid
"""

Thesaurus = Mapping[str, Sequence[str]]
Words = list[str]


def read_thesaurus(path: Path | None) -> Thesaurus:
    """Return the other words of its groups for each word, in lower case.

    Args:
        path: one group of synonyms a line, commas between; None: `SYNONYMS`.

    Raises:
        DataError: the file cannot be read, or holds no two words of one meaning.
    """
    found: dict[str, dict[str, None]] = {}
    for line in (SYNONYMS if path is None else read_text(path)).splitlines():
        group = [word for word in (part.strip().lower() for part in line.split(",")) if word]
        for word in group:
            found.setdefault(word, {}).update(dict.fromkeys(other for other in group if other != word))
    thesaurus = {word: tuple(others) for word, others in found.items() if others}
    if not thesaurus:
        raise DataError(f"error: --thesaurus {path}: no line has two words with a comma between")
    return thesaurus


def augmented(texts: Sequence[str], kind: str, rate: float, thesaurus: Thesaurus, seed: int, epoch: int) -> list[str]:
    """Return the texts with about `rate` of their words changed, the same for the same seed and epoch.

    Args:
        texts: of any number of words.
        kind: deletion, swap, synonyms or eda: for each text one of these three and insertion, drawn at random.
        rate: share of the words of a text, at least one word.
        thesaurus: of `read_thesaurus`.
        seed: of the run.
        epoch: of the run.
    """
    rng = random.Random(seed * 1_000_003 + epoch)
    changed = []
    for text in texts:
        words = text.split()
        change = OPERATIONS[rng.choice(tuple(OPERATIONS)) if kind == "eda" else kind]
        changed.append(" ".join(change(words, max(1, round(rate * len(words))), thesaurus, rng)) if words else text)
    return changed


def delete(words: Words, count: int, _: Thesaurus, rng: random.Random) -> Words:
    """Leave out `count` words, but never the last one."""
    kept = sorted(rng.sample(range(len(words)), max(1, len(words) - count)))
    return [words[place] for place in kept]


def swap(words: Words, count: int, _: Thesaurus, rng: random.Random) -> Words:
    """Let two words change places, `count` times."""
    words = list(words)
    for _number in range(count):
        one, other = rng.randrange(len(words)), rng.randrange(len(words))
        words[one], words[other] = words[other], words[one]
    return words


def replace(words: Words, count: int, thesaurus: Thesaurus, rng: random.Random) -> Words:
    """Put a synonym in the place of `count` words, or of as many as have one; swap words if none has."""
    places = [place for place, word in enumerate(words) if _bare(word) in thesaurus]
    if not places:
        return swap(words, count, thesaurus, rng)
    words = list(words)
    for place in rng.sample(places, min(count, len(places))):
        bare = _bare(words[place])
        # Commas and brackets around the word stay.
        words[place] = words[place].lower().replace(bare, rng.choice(thesaurus[bare]), 1)
    return words


def insert(words: Words, count: int, thesaurus: Thesaurus, rng: random.Random) -> Words:
    """Put synonyms of `count` of the words anywhere; swap words if none has one."""
    known = [bare for bare in map(_bare, words) if bare in thesaurus]
    if not known:
        return swap(words, count, thesaurus, rng)
    words = list(words)
    for _ in range(count):
        words.insert(rng.randint(0, len(words)), rng.choice(thesaurus[rng.choice(known)]))
    return words


OPERATIONS: dict[str, Callable[[Words, int, Thesaurus, random.Random], Words]] = {
    "deletion": delete,
    "swap": swap,
    "synonyms": replace,
    "insertion": insert,
}


def _bare(word: str) -> str:
    return word.lower().strip(".,;:!?()[]'\"-")
