"""Write encyclopedia articles with a small grammar, in WikiText's form, as data where no real data are at hand.

Each article is about a made-up thing: a place, an animal, a ship or a person, whose name and figures are drawn for it
and come back in every section. So reading what stands further up helps to foretell what comes, as in real articles.
"""

import random
from collections.abc import Iterator

SYLLABLES = ("bar", "cal", "dor", "el", "fen", "gor", "hal", "is", "kel", "lor", "mar", "nev", "or", "pel", "ros")
ENDINGS = {
    "place": ("ton", "ham", "by", "wick", "ford"),
    "animal": ("ula", "ix", "ops", "era", "us"),
    "ship": ("ia", "ana", "or", "is", "ea"),
    "person": ("sen", "er", "well", "man", "ley"),
}
FIRST_NAMES = ("Anna", "Boris", "Clara", "David", "Edith", "Felix", "Greta", "Henry", "Ida", "Jonas")
COUNTRIES = ("Norland", "Estmark", "Suvaria", "Westria", "Ostfell", "Calmera")
COLOURS = ("brown", "grey", "pale green", "dark blue", "reddish", "white")
FOODS = ("insects", "seeds", "small fish", "berries", "snails", "grass")
WORKS = ("novel", "symphony", "bridge", "map", "dictionary", "painting")
GOODS = ("coal", "timber", "wool", "salt", "grain", "copper")
SEASONS = ("spring", "summer", "autumn", "winter")
MIN_SECTIONS, MAX_SECTIONS = 2, 4
MIN_SENTENCES, MAX_SENTENCES = 3, 8

Facts = dict[str, str]


def write(num_articles: int, seed: int) -> str:
    """Return articles as one text: tokens set apart by spaces, a paragraph a line, ` = Title = ` headings."""
    rng = random.Random(seed)
    return "".join(_article(rng) for _ in range(num_articles))


def _article(rng: random.Random) -> str:
    kind = rng.choice(tuple(SECTIONS))
    facts = _facts(rng, kind)
    sections = rng.sample(tuple(SECTIONS[kind]), k=min(rng.randint(MIN_SECTIONS, MAX_SECTIONS), len(SECTIONS[kind])))
    lines = ["", f"= {facts['name']} =", "", " ".join(_sentences(rng, SECTIONS[kind]["Summary"], facts)), ""]
    for section in sections:
        if section != "Summary":
            lines += [f"= = {section} = =", "", " ".join(_sentences(rng, SECTIONS[kind][section], facts)), ""]
    return "".join(f" {line} \n" if line else " \n" for line in lines)


def _facts(rng: random.Random, kind: str) -> Facts:
    def name(of: str) -> str:
        return "".join(rng.choice(SYLLABLES) for _ in range(rng.randint(1, 2))).capitalize() + rng.choice(ENDINGS[of])

    own = name(kind)
    year = rng.randint(1650, 1950)
    return {
        "name": f"{rng.choice(FIRST_NAMES)} {own}" if kind == "person" else own,
        "short": own,
        "country": rng.choice(COUNTRIES),
        "river": name("ship"),
        "town": name("place"),
        "colour": rng.choice(COLOURS),
        "food": rng.choice(FOODS),
        "work": rng.choice(WORKS),
        "good": rng.choice(GOODS),
        "season": rng.choice(SEASONS),
        "year": str(year),
        "later": str(year + rng.randint(3, 60)),
        "count": f"{rng.randint(1, 98)} @,@ {rng.randint(100, 999)}",
        "size": f"{rng.randint(1, 9)} @.@ {rng.randint(1, 9)}",
    }


def _sentences(rng: random.Random, templates: tuple[str, ...], facts: Facts) -> Iterator[str]:
    """Fill the first template, which introduces, and some of the others in any order."""
    first, *others = templates
    chosen = rng.sample(others, k=min(rng.randint(MIN_SENTENCES, MAX_SENTENCES) - 1, len(others)))
    for template in (first, *chosen):
        yield template.format_map(facts)


SECTIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "place": {
        "Summary": (
            "{name} is a town in {country} , on the banks of the {river} .",
            "In {later} it had {count} inhabitants .",
            "It lies {size} kilometres from {town} .",
            "{name} is known for its {good} , which was shipped down the {river} until {later} .",
            "The town was founded in {year} .",
        ),
        "History": (
            "{name} was founded in {year} , when {good} was found near the {river} .",
            "A fire destroyed most of {name} in the {season} of {later} .",
            "The people of {town} helped to build the town again .",
            "In {later} , a railway from {town} to {name} was opened .",
            "Trade in {good} came to an end in {later} .",
        ),
        "Geography": (
            "{name} lies on the {river} , {size} kilometres above {town} .",
            "The hills around the town are {colour} in {season} .",
            "The {river} is {size} metres deep at the old bridge .",
            "In {season} the road to {town} is often closed .",
        ),
        "Economy": (
            "The economy of {name} rests on {good} .",
            "In {later} the largest mill employed {count} people .",
            "Most of the {good} goes to {town} and from there to all of {country} .",
        ),
    },
    "animal": {
        "Summary": (
            "{name} is a genus of {colour} animals from {country} .",
            "It feeds on {food} .",
            "{name} was first described in {year} .",
            "Adults grow to a length of {size} metres .",
            "About {count} of them are left along the {river} .",
        ),
        "Description": (
            "{name} has a {colour} coat , which turns lighter in {season} .",
            "Adults grow to a length of {size} metres and are heavier than those of other genera .",
            "The young are {colour} from the first day on .",
            "It can be told apart by its {size} centimetre long ears .",
        ),
        "Behaviour": (
            "{name} feeds on {food} , most of all in {season} .",
            "It sleeps near the {river} and wakes before the sun rises .",
            "In {season} , it moves from the {river} towards {town} .",
            "Where there is no {food} , it eats roots .",
        ),
        "Conservation": (
            "{name} has been protected in {country} since {later} .",
            "In {year} there were {count} animals , fewer than ever before .",
            "A park near {town} was opened for it in {later} .",
        ),
    },
    "ship": {
        "Summary": (
            "{name} was a ship of the navy of {country} , built in {year} .",
            "She was named after the river {river} .",
            "Her hull was painted {colour} .",
            "{name} was sold in {later} .",
            "She carried {good} between {town} and the islands .",
        ),
        "Construction": (
            "{name} was laid down at {town} in the {season} of {year} .",
            "She was {size} metres wide and had a {colour} hull .",
            "The yard at {town} used {count} tons of steel for her .",
            "Her sister ship was never finished .",
        ),
        "Service": (
            "{name} left {town} for the first time in {season} .",
            "She carried {good} until {later} .",
            "In {later} , {name} ran aground near the mouth of the {river} .",
            "Her crew was saved by boats from {town} .",
            "She sailed {count} miles in all .",
        ),
    },
    "person": {
        "Summary": (
            "{name} was an engineer and writer from {country} , born in {town} in {year} .",
            "{short} is known for a {work} that was finished in {later} .",
            "{short} lived on the {river} for {size} decades .",
            "A school in {town} is named after {name} .",
        ),
        "Early life": (
            "{name} was born in {town} in {year} .",
            "The family traded in {good} .",
            "{short} moved to {country} as a child .",
            "In {season} {short} worked on the boats of the {river} .",
        ),
        "Work": (
            "{short} began the {work} in {year} and finished it in {later} .",
            "{count} copies of a book about the {work} were sold .",
            "Critics called the {work} {colour} and cold .",
            "The {work} can still be seen in {town} .",
            "{short} wrote that the {work} was paid for with {good} .",
        ),
        "Later years": (
            "In {later} , {short} returned to {town} .",
            "{name} died in the {season} of that year .",
            "A street near the {river} bears the name of {short} .",
        ),
    },
}
