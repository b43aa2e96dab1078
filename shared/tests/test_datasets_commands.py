"""`trainyard datasets`, as a person types it: in this process, and in real ones that get in each other's way."""

import io
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from trainyard_shared.datasets import catalogue, fetch, wikitext
from trainyard_shared.datasets.commands import download_one, main
from trainyard_shared.datasets.fetch import changed_files, locked, record_checksums
from trainyard_shared.errors import UsageError

TRAINYARD = [sys.executable, "-m", "trainyard_shared.datasets.commands"]
REPO = "Salesforce/wikitext"
RAW, WORD = "wikitext-2-raw", "wikitext-2-word"


@pytest.fixture
def run(capsys):
    def run(line: str) -> tuple[int, str, str]:
        status = main(line.split())
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def have(cache, monkeypatch):
    """Put a whole WikiText-2, by its number of lines, into the cache."""

    def have(form: str) -> Path:
        folder = cache / "wikitext-2" / form
        folder.mkdir(parents=True)
        for split in wikitext.SPLITS:
            text = " = Title = \n" + " \n" * (wikitext.NUM_LINES[split] - 1)
            (folder / f"wiki.{split}.{wikitext.SUFFIX[form]}").write_text(text)
        with locked(folder):
            record_checksums(folder)
        return folder

    return have


# In this process


def test_list_has_every_data_set_and_what_is_in_the_cache(run, have, cache):
    have("raw")
    status, out, err = run("datasets list")
    lines = {line.split()[0]: line for line in out.splitlines() if line}
    assert (status, err) == (0, "")
    assert set(catalogue.entries()) <= set(lines)
    assert re.search(r"language modelling .*4\.5 MiB .*\d KiB$", lines[RAW])
    assert lines[WORD].endswith("  no")
    assert str(cache) in out
    assert all(len(line) <= 100 for line in lines.values() if str(cache) not in line)


def test_show_has_every_fact(run, cache):
    status, out, _ = run("datasets show cifar10 imdb")
    assert status == 0
    for name in ("cifar10", "imdb"):
        entry = catalogue.entry(name)
        facts = [entry.licence, entry.terms, entry.citation, entry.size, entry.verified, str(entry.path)]
        facts += [place.name for place in entry.places]
        facts += [file.checksum for place in entry.places for file in place.files if file.checksum]
        for fact in facts:
            assert fact in out
    assert "Kaggle (needs a Kaggle token)" in out
    assert "https://www.kaggle.com/datasets/pankrzysiu/cifar10-python cifar-10-batches-py/data_batch_1, md5 c99c" in out


def test_where(run, have, cache):
    assert run("datasets where") == (0, f"{cache}\n", "")
    folder = have("raw")
    assert run(f"datasets where {RAW}") == (0, f"{folder}\n", "")
    status, out, err = run("datasets where cmapss")
    assert (status, out) == (0, f"{cache / 'cmapss'}\n")
    assert err == "cmapss is not in the cache; get it with: trainyard datasets download cmapss\n"


def test_verify_reads_what_is_there_and_changes_nothing(run, have, cache):
    status, out, _ = run("datasets verify")
    assert (status, out) == (0, f"There is nothing in the cache {cache}.\n")
    folder = have("raw")
    status, out, err = run("datasets verify")
    assert (status, err) == (0, "")
    assert re.fullmatch(rf"{RAW}: WikiText-2, raw form, local files .*: as it came\n", out)
    (cache / "wikitext-2" / ".raw.sha256").unlink()
    assert "no checksums were taken when it came; read and sound" in run(f"datasets verify {RAW}")[1]
    status, _, err = run("datasets verify imdb")
    assert (status, err) == (
        1,
        "error: imdb is not in the cache; get it with: trainyard datasets download imdb\n",
    )
    assert folder.is_dir()


@pytest.mark.parametrize("sealed", [True, False])
def test_verify_finds_damage(run, have, sealed):
    path = have("raw") / "wiki.valid.raw"
    have("word")
    if sealed:
        path.write_text(path.read_text().replace("Title", "Tjtle"))  # as readable as before
        words = rf"{RAW}: {path} has changed since it was downloaded\. Remove it .*: trainyard datasets remove {RAW}"
    else:
        (path.parent.parent / ".raw.sha256").unlink()
        path.write_text(path.read_text()[:-2])
        words = rf"{RAW}: .* is not WikiText-2: valid: 3,759 lines, where WikiText-2 has 3,760"
    status, out, err = run("datasets verify")
    assert status == 1
    assert re.search(words, err)
    assert out.startswith(f"{WORD}: ")  # the other one is fine, and said to be
    assert path.exists()


def test_remove_asks(run, have, monkeypatch):
    folder = have("raw")
    beside = folder.with_name("raw-downloads")
    beside.mkdir()
    (beside / "begun.part").write_bytes(bytes(1000))
    status, _, err = run(f"datasets remove {RAW}")
    assert (status, err) == (2, "error: remove: there is nobody to ask; pass --yes\n")
    monkeypatch.setattr("sys.stdin", type("Terminal", (io.StringIO,), {"isatty": lambda self: True})("no\n"))
    status, out, _ = run(f"datasets remove {RAW}")
    assert (status, out.splitlines()[-1]) == (0, "Remove? [y/N] Nothing was removed.")
    assert folder.exists()
    monkeypatch.setattr("sys.stdin", type("Terminal", (io.StringIO,), {"isatty": lambda self: True})("y\n"))
    size = sum(file.stat().st_size for file in folder.parent.rglob("*") if file.is_file())
    status, out, _ = run(f"datasets remove {RAW} imdb")
    assert status == 0
    assert f"{RAW}: {size / 1024:.1f} KiB in {folder}\nimdb: not in the cache\n" in out
    assert out.endswith(f"{size / 1024:.1f} KiB freed.\n")
    assert list(folder.parent.iterdir()) == []


def test_remove_takes_only_what_is_named(run, have, cache):
    raw, word = have("raw"), have("word")
    (cache / "samples" / "one").mkdir(parents=True)
    (cache / "samples" / "one" / "file").write_bytes(bytes(2048))
    status, out, _ = run("datasets remove samples --yes")
    assert (status, out.splitlines()[-1]) == (0, "2.0 KiB freed.")
    assert raw.exists()
    assert run(f"datasets remove {WORD} --yes")[0] == 0
    assert raw.exists()
    assert changed_files(raw) == []
    assert not word.exists()


def test_remove_leaves_what_another_process_is_at(run, have):
    folder = have("raw")
    code = (
        "import sys\nfrom pathlib import Path\nfrom trainyard_shared.datasets.fetch import locked\n"
        "with locked(Path(sys.argv[1])):\n    print('in', flush=True)\n    input()"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code, str(folder)], stdin=pipe, stdout=pipe, text=True) as other:
        assert other.stdout.readline() == "in\n"
        status, _, err = run(f"datasets remove {RAW} --yes")
        other.communicate("\n", timeout=20)
    assert (status, err) == (1, f"error: Another process is using {folder.parent}. Nothing was removed there.\n")
    assert folder.exists()
    assert run(f"datasets remove {RAW} --yes")[0] == 0


@pytest.mark.parametrize(
    ("line", "status", "words"),
    [
        ("", 2, "usage: trainyard COMMAND"),
        ("dataset", 2, "error: dataset: no command of trainyard; perhaps you meant datasets"),
        ("datasets", 2, "usage: trainyard datasets COMMAND"),
        ("datasets lst", 2, "error: lst: no command of trainyard datasets; perhaps you meant list"),
        ("datasets list --all", 2, "error: --all: no flag of trainyard datasets list"),
        ("datasets list imdb", 2, "error: imdb: an argument, but not expected here of trainyard datasets list"),
        ("datasets show", 2, "error: show: name a data set; there are: .*cifar10, cifar100, "),
        ("datasets show imbd", 2, "error: imbd: no data set of the catalogue; perhaps you meant imdb"),
        ("datasets download", 2, "error: download: name a data set; there are: .*cifar10"),
        ("datasets download imdb moon", 2, "error: moon: no data set of the catalogue; there are: .*cifar10"),
        ("datasets download imdb --offlin", 2, "error: --offlin: no flag of .* download; perhaps you meant --offline"),
        ("datasets download --offline imdb", 2, "error: imdb: an argument, but not expected here"),
        ("datasets download imdb --tickers A", 2, "error: --tickers: no flag of trainyard datasets download"),
        ("datasets download imdb stocks --tickers A", 2, "error: --tickers: no flag of"),
        ("datasets download stocks", 2, "error: --tickers: name the stocks to download, such as AAPL MSFT"),
        ("datasets download stocks --tickers A/B", 2, "error: 'A/B' is no ticker"),
        (
            "datasets download stocks --tickers A --start 1.1.2020",
            2,
            "--start: 1.1.2020 is not allowed: .* a date such",
        ),
        (
            "datasets download imdb --offline",
            1,
            "error: IMDb .* is not in .*offline mode .* What to do: download https",
        ),
        ("datasets where moon", 2, "error: moon: no data set"),
        ("datasets verify moon", 2, "error: moon: no data set"),
        ("datasets remove", 2, "error: remove: name a data set"),
        ("datasets remove moon --yes", 2, "error: moon: no data set"),
    ],
)
def test_wrong_lines(run, cache, line, status, words):
    found, out, err = run(line)
    assert (found, out) == (status, "")
    assert re.search(words, err)
    assert "Traceback" not in err
    assert not [path for path in cache.rglob("*") if path.is_file() and not path.name.endswith(".lock")]


@pytest.mark.parametrize("verb", ["list", "show", "download", "verify", "where", "remove"])
def test_help(run, verb, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["datasets", verb, "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: trainyard datasets {verb} ")


def test_the_verb_of_a_project(cache, monkeypatch, capsys):
    """What a project's own `download` does: its data set, its defaults, and the user's flags before them."""
    asked = []

    def load_prices(folder, tickers, start, end, *, offline):
        asked.append((tickers, str(start), end, offline))
        raise UsageError("error: enough")

    monkeypatch.setattr("trainyard_shared.datasets.stocks.load_prices", load_prices)
    for flags in ([], ["--tickers", "IBM", "--offline"], ["--start", "2001-02-03"]):
        with pytest.raises(UsageError, match="enough"):
            download_one("stocks", flags, prog="toy download", tickers=("A", "B"), start="2000-01-01")
    assert asked == [
        (("A", "B"), "2000-01-01", None, False),
        (("IBM",), "2000-01-01", None, True),
        (("A", "B"), "2001-02-03", None, False),
    ]
    with pytest.raises(UsageError, match=r"--ofline: no flag of toy download; perhaps you meant --offline"):
        download_one("imdb", ["--ofline"], prog="toy download")


# In processes of their own, against a server that speaks the Hub's API


@pytest.fixture
def hub(web, tmp_path) -> dict[str, str]:
    """Publish a WikiText-2 of the right number of lines; return the environment in which the commands find it."""
    pa = pytest.importorskip("pyarrow")
    pytest.importorskip("huggingface_hub")
    import pyarrow.parquet as parquet

    files = {}
    for form in ("raw", "word"):
        for split, name in wikitext.HUB_SPLIT.items():
            lines = [f" = {form} {split} = \n", *[""] * (wikitext.NUM_LINES[split] - 1)]
            file = io.BytesIO()
            parquet.write_table(pa.table({"text": lines}), file)
            files[f"{wikitext.HUB_FOLDER[form]}/{name}-00000-of-00001.parquet"] = file.getvalue()
    web.publish_on_hub(REPO, files)
    environment = {name: value for name, value in os.environ.items() if name != "TRAINYARD_OFFLINE"}
    return environment | {
        "HF_ENDPOINT": web.url,
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HOME": str(tmp_path / "hf"),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "HOME": str(tmp_path),
    }


def start(environment: dict[str, str], *words: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [*TRAINYARD, "datasets", *words],
        env=environment,
        stdout=pipe,
        stderr=pipe,
        text=True,
        # A shell ignores it for what it starts in the background, and this is passed on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.mark.skipif(sys.platform != "linux", reason="the cache follows XDG_CACHE_HOME on Linux only")
def test_several_processes_download_once(web, hub, tmp_path):
    web.delay_s = 0.3  # so that all are there before the first is done
    processes = [start(hub, "download", RAW) for _ in range(3)]
    ends = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0] * 3, ends
    assert len(web.gets_of("/storage/")) == 3  # one for each split
    assert sum("Downloading" in err for _, err in ends) == 1
    folder = tmp_path / "cache" / "trainyard" / "datasets" / "wikitext-2"
    for out, _ in ends:
        assert out.startswith(f"{RAW}: WikiText-2, raw form, Hugging Face Hub ({REPO}) ({folder / 'raw'}); ")
    assert sorted(path.name for path in folder.iterdir()) == [".raw.lock", ".raw.sha256", "raw"]
    assert (folder / "raw" / "wiki.valid.raw").read_text().startswith(" = raw valid = \n \n")

    web.delay_s = 0.0
    num_requests = len(web.requests)
    offline = start(hub, "download", RAW, WORD, "--offline")
    out, err = offline.communicate(timeout=60)
    assert offline.returncode == 1
    assert out.startswith(f"{RAW}: ")
    assert re.search(r"error: WikiText-2 \(word\) is not in .*, and offline mode .* What to do: ", err)
    assert len(web.requests) == num_requests


@pytest.mark.skipif(sys.platform != "linux", reason="the cache follows XDG_CACHE_HOME on Linux only")
def test_an_interrupted_download_is_taken_up_and_mirrors_are_named(web, hub, tmp_path):
    """The Hub stalls, the user presses Ctrl-C; later the Hub sends something else, and the next place has nothing."""
    web.piece_bytes = 64  # none of the files has arrived whole when it stalls
    web.on_piece = lambda sent: time.sleep(20 if len(web.gets_of("/storage/")) <= 3 else 0)
    process = start(hub, "download", RAW)
    deadline = time.monotonic() + 60
    while len(web.gets_of("/storage/")) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=15)
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in err

    web.on_piece = lambda sent: None
    valid = f"/datasets/{REPO}/resolve/main/{wikitext.HUB_FOLDER['raw']}/validation-00000-of-00001.parquet"
    announced = web.headers[valid]["X-Linked-Etag"]
    web.headers[valid]["X-Linked-Etag"] = f'"{"0" * 64}"'
    process = start(hub, "download", RAW)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "")
    assert f"Hugging Face Hub ({REPO}): what arrived has the sha256 {announced[1:-1]}, expected {'0' * 64}" in err
    assert "the original archive on the Hugging Face Hub (ggml-org/ci): 404 Not Found" in err
    assert "What to do: " in err
    assert not (tmp_path / "cache" / "trainyard" / "datasets" / "wikitext-2" / "raw").exists()

    web.headers[valid]["X-Linked-Etag"] = announced
    process = start(hub, "download", RAW)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    verify = start(hub, "verify")
    assert verify.communicate(timeout=60)[0].endswith(": as it came\n")


def test_progress_on_a_terminal_is_a_bar_for_each_file(web, tmp_path, monkeypatch, capsys):
    """Two downloads at a time share one display: rich refuses a second one."""
    from functools import partial

    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    web.files = {"/a": bytes(300_000), "/b": bytes(300_000)}
    web.on_piece = lambda sent: time.sleep(0.02)
    calls = [
        partial(fetch.download, fetch.HttpFile("server", f"{web.url}/{name}"), tmp_path / name) for name in ("a", "b")
    ]
    fetch.together(*calls)
    assert fetch._BARS.group is None
    assert "Downloading" not in capsys.readouterr().err
