"""Every command of every project, given what is wrong: one clear message, an exit status that says whose fault it is,
no traceback, nothing left behind. Flags come from each command's own help, so that a new one is tested by itself."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import workspace

ROOT = Path(__file__).resolve().parent.parent

# Runs in a process of its own for each project, in which nothing but its command line is imported: no backend is
# installed here, and a message that needed one would be an error of its own.
WORKER = r"""
import contextlib, importlib, io, json, re, sys, traceback

cli = importlib.import_module(f"{sys.argv[1]}.cli")
TYPES = {"INT": "x", "FLOAT": "x", "BOOL": "maybe"}


def outcome(arguments):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = cli.main(arguments)
        except SystemExit as end:
            status = end.code
        except BaseException:
            status = traceback.format_exc()
    return {"arguments": arguments, "status": status, "out": out.getvalue(), "err": err.getvalue()}


listed = outcome(["--help"])["out"].split("commands:\n")[1]
verbs = re.findall(r"^  (\w\S*)", listed, flags=re.MULTILINE)
found = [outcome([]), outcome([verbs[0][:-1]]), outcome(["--no-such-flag"])]
for verb in verbs:
    shown = outcome([verb, "--help"])["out"]
    flags = re.findall(r"^  (--[a-z][\w-]*) (\S+)", shown, flags=re.MULTILINE)
    cases = [["--no-such-flag"], ["--no-such-flag", "3"], ["stray"]]
    for flag, kind in flags:
        cases += [[flag], [flag[:-1] + "qx", "1"]]  # no value; mistyped
        choices = kind.strip("{}").split(",") if kind.startswith("{") else []
        if kind in TYPES or choices:
            cases.append([flag, TYPES.get(kind, "none of these")])
    if any(flag == "--config" for flag, _ in flags):
        cases.append(["--config", "nowhere.yaml"])
    found += [outcome([verb, *case]) for case in cases]
print(json.dumps(found))
"""


@pytest.mark.parametrize("project", workspace.projects(ROOT), ids=lambda project: project.name)
def test_bad_arguments_get_one_message_and_leave_nothing(project: workspace.Member, tmp_path: Path) -> None:
    sources = [str(project.path / "src"), str(ROOT / "shared" / "src")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sources)}
    command = [sys.executable, "-c", WORKER, project.module]
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    outcomes = json.loads(ended.stdout)
    assert len(outcomes) > 60, "flags were found in the help of the commands"
    for outcome in outcomes:
        assert outcome["status"] == 2, outcome
        assert "Traceback" not in outcome["err"], outcome
        if outcome["arguments"]:
            assert outcome["err"].startswith("error: "), outcome
            assert outcome["err"].count("error: ") == 1, outcome
    assert not list(tmp_path.iterdir()), "nothing is left behind"
