"""The rules that every package keeps, as functions from the root of a workspace to what breaks them there.

    python3 tools/conventions.py      say what breaks the rules; needs the packages in the group `dev`

A new rule is a function in `CHECKS` and a broken workspace in tests/test_conventions_fail.py that it complains about.
"""

import ast
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from workspace import ROOT, Member, members, projects, read_toml

REQUIRED_FILES = ["README.md", "pyproject.toml", "configs/sample.yaml", "configs/full.yaml"]
REQUIRED_MODULES = ["__init__", "cli", "config", "data", "model", "train", "evaluate", "compare"]
README_HEADINGS = ["What it shows", "Run", "Data", "Results", "Logged metrics", "Limits"]
SETTINGS_OF_TOOLS = ["ruff", "mypy", "pytest"]
BACKENDS = ["torch", "torchvision", "deepspeed", "fairscale", "colossalai"]
MAY_IMPORT_TORCH = ["launch.py", "tensors"]
UNPICKLES = ["pickle.load", "pickle.loads", "pickle.Unpickler", "joblib.load", "yaml.unsafe_load", "yaml.full_load"]
LARGEST_FILE_BYTES = 500_000
# Written so that these two patterns do not find themselves.
MACHINE_PATH = re.compile(r"(?<![\w.~-])/(?:home/(?!<)[\w.-]+|root|work|Users/[\w.-]+)/[\w.-]+")
REGISTRY_HOST = re.compile(r"py[p]i\.org|python[h]osted|registry\.npm[j]s|deb\.[d]ebian|download\.py[t]orch")


def check_names(root: Path) -> Iterator[str]:
    """Directory = distribution = module with underscores."""
    for member in members(root):
        if member.is_project and member.path.name != member.name:
            yield f"{member.path.relative_to(root)}: the distribution is named {member.name}, not as its folder"
        if not member.source.is_dir():
            yield f"{member.path.relative_to(root)}: has no module src/{member.module}"


def check_files(root: Path) -> Iterator[str]:
    """Every project has the same files, and tests with what they need."""
    for member in projects(root):
        wanted = [member.source / file if "configs" in file else member.path / file for file in REQUIRED_FILES]
        wanted += [member.source / f"{module}.py" for module in REQUIRED_MODULES]
        for path in wanted:
            if not path.is_file():
                yield f"{path.relative_to(root)}: missing"
    for member in members(root):
        if not list((member.path / "tests").rglob("test_*.py")):
            yield f"{member.path.relative_to(root)}/tests: holds no test_*.py"
        if "test" not in member.pyproject.get("dependency-groups", {}):
            yield f"{member.path.relative_to(root)}/pyproject.toml: has no dependency group 'test'"


def check_scripts(root: Path) -> Iterator[str]:
    """Every project installs train, evaluate, compare and a command of its own name, all from its cli.py."""
    for member in projects(root):
        functions = {"train": "train", "evaluate": "evaluate", "compare": "compare", member.name: "main"}
        for script, function in functions.items():
            target, wanted = member.scripts.get(script), f"{member.module}.cli:{function}"
            if target != wanted:
                yield f"{member.name}: the script {script} is {target or 'missing'}, not {wanted}"


def check_settings(root: Path) -> Iterator[str]:
    """The settings of the tools are in the root pyproject.toml only."""
    for member in members(root):
        for tool in SETTINGS_OF_TOOLS:
            if tool in member.pyproject.get("tool", {}):
                yield f"{member.name}: its pyproject.toml has a section [tool.{tool}], which belongs into the root's"


def check_readmes(root: Path) -> Iterator[str]:
    """The READMEs of the projects have the same headings in the same order."""
    for member in projects(root):
        readme = member.path / "README.md"
        prose = "".join(text for text, is_code in _split_markdown(readme) if not is_code)
        found = re.findall(r"^## +(.+?) *$", prose, flags=re.MULTILINE)
        if found != README_HEADINGS:
            yield f"{readme.relative_to(root)}: the headings are {found}, not {README_HEADINGS}"


def check_presets(root: Path) -> Iterator[str]:
    """Every preset parses against the project's TrainConfig and holds only what differs from the defaults."""
    # In a process of its own: nothing but config.py may be needed to read a preset, and no backend.
    code = f"""
import dataclasses, importlib, sys
from trainyard_shared import config
from trainyard_shared.errors import UsageError
package = sys.argv[1]
config_class = importlib.import_module(package + ".config").TrainConfig
for backend in {BACKENDS}:
    if backend in sys.modules:
        print(f"config.py imports {{backend}}: --help and a wrong flag have to answer at once")
folder = config.preset_folder(package)
for name in sorted(config.preset_names(folder)):
    try:
        preset = config.load_preset(config_class, folder / f"{{name}}.yaml")
    except UsageError as error:
        print(f"configs/{{name}}.yaml: {{error}}")
        continue
    for field in config.read_yaml(folder / f"{{name}}.yaml"):
        if getattr(preset, field) == getattr(config_class(), field):
            print(f"configs/{{name}}.yaml: {{field}} is the default: leave it out")
"""
    for member in projects(root):
        python_path = f"{member.path / 'src'}:{root / 'shared' / 'src'}"
        done = subprocess.run(
            [sys.executable, "-c", code, member.module],
            env={"PYTHONPATH": python_path, "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
        )
        findings = done.stdout.splitlines()
        if done.returncode:
            findings.append(f"config.py and presets cannot be read: {done.stderr.strip().splitlines()[-1]}")
        for finding in findings:
            yield f"{member.name}: {finding}"


def check_imports(root: Path) -> Iterator[str]:
    """Projects do not import each other, and shared imports no backend."""
    modules = {member.module: member for member in members(root)}
    for member in members(root):
        for path in sorted([*member.path.glob("src/**/*.py"), *member.path.glob("tests/**/*.py")]):
            where = path.relative_to(root)
            for name, line in _imports(path):
                if name in modules and modules[name].is_project and name != member.module:
                    yield f"{where}:{line}: imports {name}, another project"
                if member.is_project or member.source not in path.parents or name not in BACKENDS:
                    continue
                if name != "torch" or path.relative_to(member.source).parts[0] not in MAY_IMPORT_TORCH:
                    yield f"{where}:{line}: imports {name}; in shared only launch.py and tensors/ may, and only torch"


def check_dependencies(root: Path) -> Iterator[str]:
    """Projects pin their backends exactly and depend on no other project; shared depends on no backend."""
    project_names = {member.name for member in projects(root)}
    for member in members(root):
        extras = member.pyproject["project"].get("optional-dependencies", {}).values()
        requirements = [*member.dependencies, *(requirement for extra in extras for requirement in extra)]
        found = {requirement: _distribution(requirement) for requirement in requirements}
        for requirement, name in found.items():
            if name in project_names:
                yield f"{member.name}: depends on {name}, another project"
            if name in BACKENDS and not member.is_project:
                yield f"{member.name}: depends on {name}; it has to take that of the project that uses it"
            elif name in BACKENDS and "==" not in requirement:
                yield f"{member.name}: {requirement}: pin the backend exactly, with =="
        if member.is_project and not set(found.values()) & set(BACKENDS):
            yield f"{member.name}: declares none of the backends {', '.join(BACKENDS)}"


def check_reinstall(root: Path) -> Iterator[str]:
    """The root's reinstall-package lists exactly the members with scripts, or uv may start another project's code."""
    listed = set(read_toml(root / "pyproject.toml")["tool"]["uv"].get("reinstall-package", []))
    wanted = {member.name for member in members(root) if member.scripts}
    for name in sorted(wanted - listed):
        yield f"pyproject.toml: reinstall-package lacks {name}"
    for name in sorted(listed - wanted):
        yield f"pyproject.toml: reinstall-package lists {name}, which is no member with scripts"


def check_changelog(root: Path) -> Iterator[str]:
    """CHANGELOG.md keeps the form of Keep a Changelog, and every entry says which package it is about."""
    subjects = ["workspace", *(member.name for member in members(root))]
    kinds = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]
    changelog = root / "CHANGELOG.md"
    text = changelog.read_text(encoding="utf-8") if changelog.is_file() else ""
    if not re.search(r"^- ", text, flags=re.MULTILINE):
        yield "CHANGELOG.md: has no entries"
    for number, line in enumerate(text.splitlines(), start=1):
        where = f"CHANGELOG.md:{number}"
        if line.startswith("## ") and not re.fullmatch(
            r"## (\[Unreleased\]|\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d)", line
        ):
            yield f"{where}: {line!r} is neither '## [Unreleased]' nor '## [1.2.3] - 2030-12-31'"
        if line.startswith("### ") and line[4:] not in kinds:
            yield f"{where}: {line[4:]!r} is none of {', '.join(kinds)}"
        if line.startswith("- ") and line[2:].partition(":")[0] not in subjects:
            yield f"{where}: an entry starts with one of {', '.join(f'{subject}:' for subject in subjects)}"


def check_tracked_files(root: Path) -> Iterator[str]:
    """No lock file, nothing large, no path of one machine and no host of a registry is in git."""
    for path in tracked_files(root):
        where = path.relative_to(root)
        if path.name == "uv.lock":
            yield f"{where}: must not be committed: exclude-newer and exact pins make the resolution reproducible"
        if path.stat().st_size > LARGEST_FILE_BYTES:
            yield f"{where}: {path.stat().st_size:,} bytes; the most is {LARGEST_FILE_BYTES:,}"
            continue
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue  # a picture
        for number, line in enumerate(lines, start=1):
            if found := MACHINE_PATH.search(line):
                yield f"{where}:{number}: {found[0]} is a path of one machine"
            if found := REGISTRY_HOST.search(line):
                yield f"{where}:{number}: {found[0]} is the host of a registry: name the package, not the host"


def check_commands(root: Path) -> Iterator[str]:
    """The commands in Markdown files name packages, scripts, flags, presets and files that exist."""
    known = {member.name: member for member in members(root)}
    for path in tracked_files(root):
        # Drafts are no members yet: what their commands name is not there.
        if path.suffix != ".md" or path.relative_to(root).parts[0] == "drafts":
            continue
        for command in commands_in(path):
            for finding in _wrong_in(command, known, root):
                yield f"{path.relative_to(root)}: {command}: {finding}"


def check_trust(root: Path) -> Iterator[str]:
    """No code of ours lets a file from elsewhere run code: not as a pickle, not beside weights, not in YAML."""
    for member in members(root):
        for path in sorted(member.path.glob("src/**/*.py")):
            for call in (
                node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)
            ):
                where, name = f"{path.relative_to(root)}:{call.lineno}", ast.unparse(call.func)
                options = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
                if name == "torch.load" and options.get("weights_only") != "True":
                    yield f"{where}: torch.load without weights_only=True unpickles whatever is in the file"
                if name in UNPICKLES or (name == "yaml.load" and "Loader" not in options):
                    yield f"{where}: {name} runs what the file says: read data only"
                for option in {"trust_remote_code", "allow_pickle"} & set(options):
                    if options[option] != "False":
                        yield f"{where}: {option} runs code that comes with the data"


CHECKS: list[Callable[[Path], Iterator[str]]] = [
    check_names,
    check_files,
    check_scripts,
    check_settings,
    check_readmes,
    check_presets,
    check_imports,
    check_dependencies,
    check_reinstall,
    check_changelog,
    check_tracked_files,
    check_commands,
    check_trust,
]


def tracked_files(root: Path) -> list[Path]:
    """Return the files that are in git or would be added by `git add .`."""
    # A checkout may belong to another user than the one in a container; git would refuse it.
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    paths = (root / name for name in sorted(set(listing.split("\0"))) if name)
    return [path for path in paths if path.is_file()]


def commands_in(markdown: Path) -> list[str]:
    """Return the commands in the bash blocks of a Markdown file, without comments, `&&` taken apart."""
    blocks = "".join(text for text, is_code in _split_markdown(markdown) if is_code)
    lines = blocks.replace("\\\n", " ").splitlines()
    parts = (part for line in lines for part in _without_comment(line).split("&&"))
    return [" ".join(part.split()) for part in parts if part.strip()]


def _split_markdown(path: Path) -> Iterator[tuple[str, bool]]:
    """Yield the lines of a Markdown file, each with whether it stands in a bash block; leave out other blocks."""
    language: str | None = None
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.startswith("```"):
            language = line[3:].strip() if language is None else None
        elif language in (None, "bash"):
            yield line, language == "bash"


def _without_comment(line: str) -> str:
    return re.sub(r"(^|\s)#.*", "", line)


def _wrong_in(command: str, known: dict[str, Member], root: Path) -> Iterator[str]:
    words = [word for word in shlex.split(command) if not re.fullmatch(r"[A-Z_]+=.*", word)]
    for word in words:
        path = word.partition("[")[0]  # ./shared[hub]
        if path.startswith(("./", "docs/", "packages/", "tools/")) and "<" not in path and not (root / path).exists():
            yield f"there is no {path}"
    name = _value_of("--package", words)
    if name and name not in [*known, "workspace"] and "<" not in name:
        yield f"there is no package {name}"

    module = _value_of("-m", words)
    owner = next((member for member in known.values() if module and member.module == module.partition(".")[0]), None)
    if owner and module:  # python3 -m torchdist_cifar.train, also behind a launcher with flags of its own
        script, arguments = module, words[words.index(module) + 1 :]
        if not (owner.path / "src" / f"{module.replace('.', '/')}.py").is_file():
            yield f"there is no module {module}"
    elif name in known and "run" in words:  # uv run --package torchdist-cifar train
        owner, (script, *arguments) = known[name], words[words.index(name) + 1 :]
        if script not in [*owner.scripts, "python", "pytest"]:
            yield f"{name} has no script {script}"
    elif words[0] in known:  # torchdist-cifar train
        owner, (script, *arguments) = known[words[0]], words
    else:
        return
    if script == owner.name and arguments and not arguments[0].startswith("-") and arguments[0] not in _verbs(owner):
        yield f"{owner.name} has no command {arguments[0]}"
    if owner.is_project and script not in ("python", "pytest"):
        yield from _wrong_flags(arguments, owner, known["trainyard-shared"])


def _verbs(member: Member) -> list[str]:
    """Return the commands of the script named as the package: its scripts, and the rest of the table in its cli.py."""
    found = list(member.scripts)
    for node in ast.walk(ast.parse((member.source / "cli.py").read_text(encoding="utf-8"))):
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.value, ast.Dict)
            and ast.unparse(node.targets[0]) == "commands"
        ):
            found += [str(ast.literal_eval(key)) for key in node.value.keys if key is not None]
    return found


def _value_of(flag: str, words: list[str]) -> str | None:
    return words[words.index(flag) + 1] if flag in words[:-1] else None


def _wrong_flags(arguments: list[str], owner: Member, shared: Member) -> Iterator[str]:
    flags = {"--help", "--config", "--resume", *_flags(owner), *_flags(shared)}
    for i, word in enumerate(arguments):
        flag, _, value = word.partition("=")
        if not flag.startswith("--"):
            continue
        if flag not in flags:
            yield f"{owner.name} has no flag {flag}"
        value = value or "".join(arguments[i + 1 : i + 2])
        preset = owner.source / "configs" / f"{value}.yaml"
        if flag == "--config" and not value.endswith(".yaml") and not preset.is_file():
            yield f"{owner.name} has no preset {value}"


def _flags(member: Member) -> Iterator[str]:
    """Yield the flags that the fields of a member's config classes become."""
    tree = ast.parse((member.source / "config.py").read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for field in node.body:
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                    name = field.target.id.replace("_", "-")
                    yield from (f"--{name}", f"--no-{name}")


def _imports(path: Path) -> Iterator[tuple[str, int]]:
    """Yield the top-level name and the line of every import in a Python file, wherever in the file it stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name.partition(".")[0], node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0], node.lineno


def _distribution(requirement: str) -> str:
    match = re.match(r"[\w.-]+", requirement)
    return match[0].lower().replace("_", "-") if match else requirement


def main() -> int:
    findings = [finding for check in CHECKS for finding in check(ROOT)]
    print("\n".join(findings))
    return int(bool(findings))


if __name__ == "__main__":
    sys.exit(main())
