"""Write news articles with a small grammar, as data to train on where no real data are at hand.

An article is a title and a description about one event of its class. Places, agencies, days and figures are common to
all classes, and so are the words that now and then cross over: a club with a new sponsor, a firm before a court. A few
articles are of two classes at once, and no classifier can be right about all of them.
"""

import random
from collections.abc import Iterable

# How often a sentence of the description is about another class, and how often the title is.
CROSSOVER, MIXED = 0.15, 0.05
MIN_SENTENCES, MAX_SENTENCES = 1, 3

AGENCIES = ("Reuters", "AP", "AFP", "SPACE.com", "Newsday", "MacCentral")
PLACES = ("BAGHDAD", "LONDON", "NEW YORK", "TOKYO", "PARIS", "ATHENS", "SAN FRANCISCO", "MOSCOW", "SYDNEY", "BEIJING")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
NAMES = ("Miller", "Tanaka", "Silva", "Novak", "Haddad", "Olsen", "Moreau", "Kim", "Rossi", "Weber", "Okafor", "Singh")
NUMBERS = ("two", "three", "four", "five", "six", "a dozen", "20", "30", "more than 100")
# Common to all classes, so that a title alone may say little.
NEUTRAL = (
    "{name} Says No to New Offer",
    "What {name} Did on {day}",
    "A Long Week for {name}",
    "{name} Back in {city}",
    "Critics Attack {name} Over Deal",
    "{name} Wins Support in {city}",
)

SUBJECTS = (
    (
        "troops",
        "the president",
        "rebels",
        "the foreign minister",
        "protesters",
        "the government",
        "militants",
        "police",
    ),
    ("the striker", "the champions", "the coach", "the pitcher", "the home team", "the sprinter", "the rookie"),
    ("the oil company", "the airline", "the bank", "shareholders", "the retailer", "the central bank", "investors"),
    ("the software maker", "researchers", "the space agency", "the browser", "the chip maker", "hackers", "the probe"),
)
ACTIONS = (
    (
        "agreed to a cease-fire",
        "called for new elections",
        "rejected the peace plan",
        "crossed the border",
        "freed {number} hostages",
        "declared a state of emergency",
        "met leaders of the opposition",
    ),
    (
        "won the final in overtime",
        "broke the record over 200 metres",
        "signed a contract for {number} seasons",
        "lost {number} games in a row",
        "took the gold medal",
        "missed the playoffs with a knee injury",
        "scored twice in the second half",
    ),
    (
        "raised its forecast for the quarter",
        "closed {number} branches",
        "reported a lower profit",
        "agreed to buy {number} of its rivals",
        "filed for bankruptcy",
        "left interest rates unchanged",
        "saw its stock fall to a new low",
    ),
    (
        "released a patch for {number} security holes",
        "found water below the surface of Mars",
        "showed a faster processor",
        "mapped the genes of the virus",
        "launched a free music download service",
        "warned of a worm that spreads by e-mail",
        "put a new satellite into orbit",
    ),
)
OUTCOMES = (
    ("diplomats said", "according to the army", "witnesses told a television station", "the ministry said"),
    ("in front of a sold-out stadium", "after a week without training", "the league said", "his agent said"),
    ("analysts had expected more", "sending its shares higher", "the company said in a filing", "as oil prices rose"),
    ("the journal reports", "users can download it from its web site", "engineers said", "in the latest beta version"),
)


def write(labels: Iterable[int], seed: int) -> list[tuple[str, str]]:
    """Return title and description of an article for each label (0 to 3), no two of them equal."""
    rng = random.Random(seed)
    articles: dict[tuple[str, str], None] = {}
    for label in labels:
        while (article := _article(rng, label)) in articles:
            pass
        articles[article] = None
    return list(articles)


def _article(rng: random.Random, label: int) -> tuple[str, str]:
    agency, place = rng.choice(AGENCIES), rng.choice(PLACES)
    other = rng.choice([index for index in range(len(SUBJECTS)) if index != label])
    mixed = rng.random() < MIXED
    if rng.random() < 0.3:
        title = rng.choice(NEUTRAL).format(name=rng.choice(NAMES), day=rng.choice(DAYS), city=place.title())
    else:
        title = _clause(rng, other if mixed else label).title()
    sentences = []
    for _ in range(rng.randint(MIN_SENTENCES, MAX_SENTENCES)):
        about = other if rng.random() < (0.5 if mixed else CROSSOVER) else label
        day, outcome = rng.choice(DAYS), rng.choice(OUTCOMES[about])
        clause = _clause(rng, about)
        # The real articles have their line breaks as backslashes.
        separator = "\\" if rng.random() < 0.1 else " "
        sentences.append(f"{clause[0].upper()}{clause[1:]} on {day},{separator}{outcome}.")
    opening = f"{place} ({agency}) - " if rng.random() < 0.5 else f"{agency} - "
    return (f"{title} ({agency})" if rng.random() < 0.4 else title), opening + " ".join(sentences)


def _clause(rng: random.Random, label: int) -> str:
    return f"{rng.choice(SUBJECTS[label])} {rng.choice(ACTIONS[label])}".format(number=rng.choice(NUMBERS))
