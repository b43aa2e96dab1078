"""Write tweets with a small grammar, as data to train on where no real data are at hand.

A tweet has an opinion or two about something, of the sentiment of its polarity, and perhaps a sentence that says
nothing. Opinions are negated now and then (`not happy at all about the exam`) or contrasted with what was expected, so
that counting words goes less far than reading them. Around them is what real tweets are full of: @names, links, HTML
entities, soooo long words, hashtags. Some tweets occur twice, a few of them with the other polarity, and some are
mixed up: nobody can be right about those.
"""

import random
from collections.abc import Iterator, Mapping

MAX_LENGTH = 140
# How many tweets are of the other polarity than they say; are copied from an earlier one; are copied from one of the
# other polarity.
MIXED_UP, COPIED, CONTRADICTED = 0.04, 0.01, 0.002

TOPICS = (
    "exam", "bus", "coffee", "phone", "weather", "concert", "homework", "game", "new album", "dentist", "flight",
    "puppy", "birthday", "internet", "laundry", "movie", "interview", "weekend", "haircut", "traffic", "soup", "garden",
)  # fmt: skip
WORDS = {
    0: (
        "awful", "sad", "tired", "sick", "boring", "broken", "lonely", "annoying", "ruined", "miserable", "gutted",
        "horrible",
    ),
    4: (
        "great", "happy", "fun", "awesome", "lovely", "brilliant", "excited", "delicious", "perfect", "sweet", "lucky",
        "thrilled",
    ),
}  # fmt: skip
OPINIONS = (
    "the {topic} was {word}",
    "so {word} about the {topic}",
    "the {topic} is {word} today",
    "feeling {word} after the {topic}",
    "my {topic} is {word}, as ever",
    "not {opposite} at all about the {topic}",
    "the {topic} is anything but {opposite}",
    "thought the {topic} would be {opposite} but it is {word}",
    "everybody says {opposite} but to me the {topic} is {word}",
)
VERDICTS = {
    0: (
        "i want to go home", "i miss my friends", "why does this always happen", "worst day in weeks",
        "cant sleep again", "my head hurts", "there goes my evening",
    ),
    4: (
        "cant wait for tonight", "that made my day", "best day in weeks", "thanks everyone", "love you all",
        "life is good", "what a morning",
    ),
}  # fmt: skip
FACTS = (
    "reading about the {topic}",
    "on the way to the {topic}",
    "anyone know when the {topic} starts?",
    "the {topic} is at {number}",
    "{number} people asked me about the {topic}",
    "back from the {topic}",
    "in a queue for the {topic}",
)
NAMES = ("mia", "joe", "lola", "max", "zoe", "sam", "kit", "ana", "leo", "ida", "ben", "eve")
DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")


def rows(counts: Mapping[int, int], *, seed: int, num_users: int) -> Iterator[tuple[str, ...]]:
    """Yield rows of six columns: so many tweets of each polarity (0, 2, 4), one polarity after the other."""
    rng = random.Random(seed)
    earlier: dict[int, list[str]] = {0: [], 2: [], 4: []}
    number = 1_467_810_000 + seed
    for polarity, count in counts.items():
        for _ in range(count):
            kind = rng.random()
            others = earlier[0 if polarity == 4 else 4]
            if kind < CONTRADICTED and others:
                text = rng.choice(others)
            elif kind < COPIED and earlier[polarity]:
                text = rng.choice(earlier[polarity])
            else:
                text = _tweet(rng, polarity)
                if len(earlier[polarity]) < 1000:
                    earlier[polarity].append(text)
            number += rng.randrange(1, 400)
            user = int(num_users * rng.random() ** 1.5)  # some write far more than others
            time = f"{number % 24:02d}:{number % 60:02d}:{number % 59:02d}"
            date = f"{DAYS[number % 7]} Apr {1 + number % 30:02d} {time} PDT 2009"
            yield str(polarity), str(number), date, "NO_QUERY", f"{NAMES[user % len(NAMES)]}_{user}", text


def _tweet(rng: random.Random, polarity: int) -> str:
    sentiment = 4 - polarity if polarity != 2 and rng.random() < MIXED_UP else polarity
    parts = [_fact(rng) if sentiment == 2 else _opinion(rng, sentiment)]
    for _ in range(rng.choice((0, 1, 1, 2, 2))):
        parts.append(_fact(rng) if sentiment == 2 or rng.random() < 0.5 else _opinion(rng, sentiment))
    rng.shuffle(parts)
    text = rng.choice((". ", "... ", ", ", "! ")).join(parts)
    noise = rng.random
    if noise() < 0.1:
        text = text.replace(" so ", " sooooo ").replace("love", "loooove").replace("sad", "saaaaad")
    if noise() < 0.06:
        text = text.replace(" the ", " my &amp; your ", 1)
    if noise() < 0.04:
        text = f"&quot;{text}&quot;"
    if noise() < 0.45:
        text = f"@{rng.choice(NAMES)}{rng.randrange(1000)} {text}"
    if noise() < 0.06:
        text = f"{text} http://bit.ly/{rng.randrange(10**6):x}"
    if noise() < 0.05:
        text = f"{text} #{rng.choice(TOPICS).replace(' ', '')}"
    if noise() < 0.03:
        text = f"{text} caf\xe9"
    return text[:MAX_LENGTH]


def _opinion(rng: random.Random, sentiment: int) -> str:
    if rng.random() < 0.2:
        return rng.choice(VERDICTS[sentiment])
    return rng.choice(OPINIONS).format(
        topic=rng.choice(TOPICS), word=rng.choice(WORDS[sentiment]), opposite=rng.choice(WORDS[4 - sentiment])
    )


def _fact(rng: random.Random) -> str:
    return rng.choice(FACTS).format(topic=rng.choice(TOPICS), number=rng.randrange(2, 12))
