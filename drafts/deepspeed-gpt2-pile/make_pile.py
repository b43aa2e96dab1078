"""Write real text at hand as files in The Pile's form: train, val and test, one component for each source.

    python tools/make_pile.py FOLDER --imdb "IMDB Dataset.csv" --ag-news ag_news --wikitext wikitext-2

    IMDb        film reviews, HTML line breaks replaced by line ends
    AG News     title and description of news; `train_5k_text_label.csv` and `test.csv`
    WikiText-2  articles, in the form in which it was published

A document goes to a split by the checksum of its text: about 2 % to val, 4 % to test. So the order of the sources does
not matter, equal texts are never on both sides, and the official splits of the sources are mixed: figures are not
comparable with published ones. Within a split documents are shuffled with a fixed seed.
"""

import argparse
import csv
import hashlib
import random
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from trainyard_shared.datasets import pile, wikitext
from trainyard_shared.datasets.fetch import building
from trainyard_shared.datasets.tables import write_origin

VAL, TEST = 0.02, 0.04


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="new folder to write")
    parser.add_argument("--imdb", type=Path, help="Kaggle's csv with the columns review and sentiment")
    parser.add_argument("--ag-news", type=Path, help="folder with train_5k_text_label.csv and test.csv")
    parser.add_argument("--wikitext", type=Path, help="folder with WikiText-2, word-level or raw")
    parser.add_argument(
        "--max-eval-bytes", type=int, default=150_000, help="of each component in test, a third of it in val (150000)"
    )
    arguments = parser.parse_args()
    if arguments.folder.exists():
        sys.exit(f"error: {arguments.folder} exists already")
    documents: list[tuple[str, str]] = []
    if arguments.imdb:
        documents += [(text, "IMDb") for text in imdb(arguments.imdb)]
    if arguments.ag_news:
        documents += [(text, "AG News") for text in ag_news(arguments.ag_news)]
    if arguments.wikitext:
        documents += [(text, "WikiText-2") for text in wikitext_articles(arguments.wikitext)]
    if not documents:
        sys.exit("error: name at least one source: --imdb, --ag-news or --wikitext")
    documents = sorted(set(documents))
    random.Random(0).shuffle(documents)
    with building(arguments.folder) as draft:
        for split in ("train", "val", "test"):
            own = [document for document in documents if split_of(document[0]) == split]
            if split != "train":
                own = at_most(own, arguments.max_eval_bytes // (3 if split == "val" else 1))
            pile.write_documents(draft / f"{split}.jsonl.zst", iter(own))
            counts = Counter(component for _, component in own)
            sizes: Counter[str] = Counter()
            for text, component in own:
                sizes[component] += len(text.encode())
            for component, count in sorted(counts.items()):
                print(f"{split:<6}{component:<12}{count:>8,} documents {sizes[component]:>12,} bytes")
        write_origin(draft, "written by tools/make_pile.py from IMDb, AG News and WikiText-2, whichever were given")


def split_of(text: str) -> str:
    """Return the split of a document, by the checksum of its text."""
    share = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
    return "val" if share < VAL else "test" if share < VAL + TEST else "train"


def at_most(documents: list[tuple[str, str]], num_bytes: int) -> list[tuple[str, str]]:
    """Keep the first documents of each component that fit into `num_bytes`, and at least one."""
    used: Counter[str] = Counter()
    kept = []
    for text, component in documents:
        size = len(text.encode())
        if not used[component] or used[component] + size <= num_bytes:
            used[component] += size
            kept.append((text, component))
    return kept


def imdb(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            yield row["review"].replace("<br /><br />", "\n\n").replace("<br />", "\n").strip()


def ag_news(folder: Path) -> Iterator[str]:
    with (folder / "train_5k_text_label.csv").open(encoding="utf-8", newline="") as file:
        for text, _ in csv.reader(file):
            yield text.strip()
    with (folder / "test.csv").open(encoding="utf-8", newline="") as file:
        for _, title, description in csv.reader(file):
            yield f"{title} {description}".strip()


def wikitext_articles(folder: Path) -> Iterator[str]:
    has_unknown = any("<unk>" in path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.t*")))
    found = [split for split in wikitext.SPLITS if list(folder.glob(f"*{split}.*"))]
    for text in wikitext.load_wikitext(folder, "word" if has_unknown else "raw", found).texts.values():
        for article in wikitext.articles(text):
            if article.strip():
                yield article.strip()


if __name__ == "__main__":
    main()
