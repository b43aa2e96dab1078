"""Write film reviews with a small grammar, as data to train on where no real data are at hand.

A review strings together opinions about aspects of a film, mostly of the sentiment of its label, and sentences that say
nothing. Words for and against come in three strengths, are negated now and then (`far from dull`), and stand beside
their opposite (`the cast is great, but the story is dull`), so that counting words goes less far than reading them.
"""

import random
from collections.abc import Iterable

# The middle of the lengths in characters, their spread (standard deviation of the logarithm), and the ends. The spread
# is that of the real reviews, which are twice as long.
MEDIAN_LENGTH, LENGTH_SPREAD = 420, 0.75
MIN_LENGTH, MAX_LENGTH = 30, 2500

# How often an opinion agrees with the label, and how many reviews are mixed: in them, only as often as not. No
# classifier can be right about those.
AGREEMENT = 0.88
MIXED = 0.06

ASPECTS = (
    "acting",
    "camera work",
    "cast",
    "dialogue",
    "direction",
    "editing",
    "ending",
    "first half",
    "humour",
    "lead",
    "music",
    "pacing",
    "plot",
    "script",
    "second half",
    "story",
    "villain",
)
# Weak, plain, strong; negative and positive.
WORDS = (
    (
        ("bland", "thin", "forgettable", "uneven", "flat", "predictable"),
        ("bad", "dull", "weak", "boring", "clumsy", "tedious", "silly"),
        ("awful", "dreadful", "unbearable", "terrible", "atrocious", "laughable"),
    ),
    (
        ("decent", "pleasant", "solid", "likeable", "neat", "watchable"),
        ("good", "funny", "clever", "moving", "charming", "gripping", "fresh"),
        ("superb", "brilliant", "wonderful", "stunning", "perfect", "unforgettable"),
    ),
)
DEGREES = ("", "", "", "really ", "rather ", "quite ", "very ", "simply ")
NEGATIONS = ("not {}", "far from {}", "never {}", "anything but {}", "hardly {}")
OPINIONS = (
    "The {aspect} is {word}.",
    "I found the {aspect} {word}.",
    "The {aspect} struck me as {word}.",
    "As for the {aspect}: {word}.",
    "Everyone told me that the {aspect} would be {opposite}, yet it is {word}.",
    "My brother calls the {aspect} {opposite}. It is {word}.",
    "The {aspect} is {word} from beginning to end, and so is the {other}.",
)
CONTRASTS = (
    "The {aspect} is {word}, but the {other} is {opposite}.",
    "Although the {other} is {opposite}, the {aspect} is {word}.",
    "For all its {plain} moments, the {aspect} is {word}.",
)
# Whole sentences that no template can make; negative and positive.
VERDICTS = (
    (
        "I want my two hours back.",
        "Avoid this one.",
        "I nearly walked out.",
        "Save your money.",
        "It lost me after ten minutes.",
        "I kept looking at my watch.",
    ),
    (
        "I would see it again tomorrow.",
        "Do not miss this one.",
        "I stayed until the last credit.",
        "Worth every penny.",
        "It had me after ten minutes.",
        "I forgot the time.",
    ),
)
FILLERS = (
    "I saw this {when} with {who}.",
    "The film follows a {person} who returns to {place}.",
    "It was shot in {place} on a small budget.",
    "A {person} and a {person2} meet in {place}, and things take their course.",
    "There were only {number} people in the room.",
    "The director made {number} films before this one.",
    "It runs for about {minutes} minutes.",
    "{who2} fell asleep, {who} did not.",
    "The book it is based on has {minutes} pages.",
    "Near the middle, the {person} loses a letter that the {person2} has written.",
    "I know little about {place}, where most of it takes place.",
    "We had rented it {when}.",
)
SLOTS = {
    "when": ("last winter", "on a Sunday", "at a festival", "on a long flight", "years ago", "with low expectations"),
    "who": ("my sister", "a friend", "two colleagues", "my parents", "half of my class"),
    "who2": ("My uncle", "The man beside me", "Our neighbour", "Her cousin", "The dog"),
    "person": ("sailor", "teacher", "retired spy", "baker", "young widow", "clockmaker", "journalist"),
    "person2": ("detective", "singer", "doctor", "thief", "soldier", "gardener", "twin"),
    "place": ("Lisbon", "a small village", "Vienna", "the desert", "Alaska", "a hotel by the sea", "Naples"),
    "number": ("two", "three", "four", "five", "seven", "twelve"),
    "minutes": ("80", "90", "95", "110", "120", "140"),
}
BREAK = "<br /><br />"
BREAK_SHARE, FILLER_SHARE = 0.1, 0.5


def write(labels: Iterable[int], seed: int) -> list[str]:
    """Return a review for each label (0 negative, 1 positive), no two of them equal."""
    rng = random.Random(seed)
    reviews: dict[str, None] = {}
    for label in labels:
        while (review := _review(rng, label)) in reviews:
            pass
        reviews[review] = None
    return list(reviews)


def _review(rng: random.Random, label: int) -> str:
    length = min(max(MEDIAN_LENGTH * rng.lognormvariate(0, LENGTH_SPREAD), MIN_LENGTH), MAX_LENGTH)
    agreement = 0.5 if rng.random() < MIXED else AGREEMENT
    sentences: list[str] = []
    separators: list[str] = []
    size = 0
    while True:
        # At least one opinion; shuffling puts it anywhere.
        if sentences and rng.random() < FILLER_SHARE:
            sentence = _filler(rng)
        else:
            sentence = _opinion(rng, label if rng.random() < agreement else 1 - label)
        separator = "" if not sentences else BREAK if rng.random() < BREAK_SHARE else " "
        if size >= MIN_LENGTH and size + len(separator) + len(sentence) > length:
            break
        sentences.append(sentence)
        separators.append(separator)
        size += len(separator) + len(sentence)
    rng.shuffle(sentences)
    return "".join(part for pair in zip(separators, sentences, strict=True) for part in pair)


def _opinion(rng: random.Random, sentiment: int) -> str:
    kind = rng.random()
    if kind < 0.12:
        return rng.choice(VERDICTS[sentiment])
    aspect, other = rng.sample(ASPECTS, 2)
    template = rng.choice(CONTRASTS if kind < 0.3 else OPINIONS)
    return template.format(
        aspect=aspect,
        other=other,
        word=_word(rng, sentiment),
        opposite=_word(rng, 1 - sentiment),
        plain=rng.choice(rng.choice(WORDS[1 - sentiment])),
    )


def _word(rng: random.Random, sentiment: int) -> str:
    """Return a word of this sentiment, with a degree, or one of the other, negated."""
    if rng.random() < 0.25:
        return rng.choice(NEGATIONS).format(rng.choice(WORDS[1 - sentiment][1]))
    return rng.choice(DEGREES) + rng.choice(rng.choice(WORDS[sentiment]))


def _filler(rng: random.Random) -> str:
    return rng.choice(FILLERS).format(**{slot: rng.choice(words) for slot, words in SLOTS.items()})
