"""Configuration: dataclass defaults, then a YAML preset or file, then flags; one rule checks all three.

A package declares one frozen pydantic dataclass. Its fields are the keys of the YAML files and, in kebab case, the
flags of the command line. Values from both meet in one dictionary that pydantic validates once, so a wrong value gets
the same message wherever it was written:

    error: --learning-rate: -1 is not allowed: must be greater than 0
    error: my.yaml: 'epohcs' is no field of train; perhaps you meant epochs

argparse only splits the command line. No backend is imported here: `--help` and every error answer at once.
"""

import argparse
import dataclasses
import datetime
import difflib
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

import yaml
from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from trainyard_shared.errors import UsageError

# For every config class: no unknown fields, docstrings under the fields feed --help, infinity and NaN are refused.
CONFIG = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, validate_default=True)

PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


def _day(value: Any) -> Any:
    if isinstance(value, str):
        try:
            return datetime.date.fromisoformat(value)
        except ValueError:
            raise ValueError("a date such as 2010-12-31") from None
    return value


Day = Annotated[datetime.date, BeforeValidator(_day)]

C = TypeVar("C", bound="object")


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class RunConfig:
    """What every training command takes, whatever it trains."""

    data: Literal["sample", "real"] = "sample"
    """sample: data generated on the spot, offline; real: the data set itself, downloaded unless --data-dir is given"""
    data_dir: Path | None = None
    """folder that holds the real data; default: the environment variable TRAINYARD_DATA_DIR, then the download cache"""
    out_dir: Path = Path("results")
    """folder for the run folders"""
    nproc: Literal["auto"] | PositiveInt = "auto"
    """processes on this machine; auto: one for each GPU, without a GPU 2 (torchrun sets its own number)"""
    num_threads: Literal["auto"] | PositiveInt = "auto"
    """CPU threads of each process; auto: the cores of this machine shared out among its processes"""
    max_restarts: NonNegativeInt = 2
    """how often to start again from the newest checkpoint when a process was killed or lost a peer"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """where to compute; auto: GPUs if there is one for each process on this machine, else the CPU"""
    seed: NonNegativeInt = 0
    """seed of everything random: initial weights, order of the data, augmentation"""


@dataclasses.dataclass(frozen=True)
class Parsed(Generic[C]):
    """What the command line asked for."""

    config: C
    config_name: str
    """the preset, or the stem of the file"""
    changed: tuple[str, ...]
    """fields whose values differ from the defaults of the dataclass"""
    resume: Path | None = None
    """run folder to continue"""


def parse(
    config_class: type[C],
    argv: Sequence[str],
    *,
    prog: str,
    description: str,
    presets: Traversable | None = None,
    default_preset: str = "sample",
    operands: str = "",
) -> Parsed[C]:
    """Turn a command line into a validated config.

    Args:
        config_class: frozen pydantic dataclass made with `config=CONFIG`.
        argv: the arguments after the command's name.
        prog: name of the command, for messages.
        description: what the command does, for `--help`.
        presets: folder of YAML presets (`preset_folder`); gives the command `--config` and `--resume`.
        default_preset: the preset taken without `--config`.
        operands: what the caller has taken from the front of the command line already, for `--help`.

    Raises:
        UsageError: all that is wrong with the flags and the file, one line for each finding.
        SystemExit: status 0, after `--help`.
    """
    words = [prog, operands, "[--config NAME|FILE]" if presets is not None else "", "[--FLAG VALUE ...]"]
    usage = " ".join(word for word in words if word)
    parser = _Parser(
        prog=prog, usage=usage, description=description, allow_abbrev=False, formatter_class=_HelpFormatter
    )
    if presets is not None:
        names = ", ".join(sorted(preset_names(presets)))
        help_config = f"preset ({names}) or YAML file to start from (default: {default_preset})"
        help_resume = "run folder to continue, from its newest checkpoint and with its config"
        parser.add_argument("--config", metavar="NAME|FILE", default=argparse.SUPPRESS, help=help_config)
        parser.add_argument("--resume", metavar="RUN", type=Path, default=argparse.SUPPRESS, help=help_resume)
    _add_flags(parser, config_class)

    namespace, unknown = parser.parse_known_args(list(argv))
    given = vars(namespace)
    _refuse_unknown(unknown, parser, prog)
    chosen, resume = None, None
    if presets is not None:  # without presets, fields of these names are fields like any other
        chosen, resume = given.pop("config", None), given.pop("resume", None)
    if chosen is not None and resume is not None:
        raise UsageError("error: --config and --resume exclude each other: a continued run keeps its own config")

    from_file: dict[str, Any] = {}
    source, name = "", prog
    if resume is not None:
        path = resume / "config.yaml"
        if not path.is_file():
            raise UsageError(f"error: --resume {resume}: no run folder: it has no config.yaml")
        from_file, source = read_yaml(path), str(path)
        name = resume.resolve().name.partition("-")[2].partition("-")[2]
    elif presets is not None:
        path_or_preset, name = find_config(default_preset if chosen is None else chosen, presets)
        from_file, source = read_yaml(path_or_preset), path_or_preset.name
    config = validate(config_class, from_file | given, source=source, flags=frozenset(given), prog=prog)
    return Parsed(config, name, tuple(_changed(config)), resume)


def validate(
    config_class: type[C],
    values: Mapping[str, Any],
    *,
    source: str,
    flags: frozenset[str] = frozenset(),
    prog: str = "the config",
) -> C:
    """Return the config made of `values`; the keys in `flags` came from the command line, the others from `source`.

    Raises:
        UsageError: one line for each wrong value.
    """
    names = field_names(config_class)
    # pydantic would take true for 1; as text it is refused wherever a number is wanted.
    values = {
        key: _bool_as_text(value) if key in names and not _takes_bool(config_class, key) else value
        for key, value in values.items()
    }
    try:
        return TypeAdapter(config_class).validate_python(values)
    except ValidationError as error:
        findings = _messages(error, config_class, values, source, flags, prog)
        raise UsageError("\n".join(f"error: {finding}" for finding in findings)) from error


def load_preset(config_class: type[C], path: Path | Traversable) -> C:
    """Return the config that a YAML file gives; raises UsageError if it does not parse against the class."""
    return validate(config_class, read_yaml(path), source=path.name)


def preset_folder(package: str) -> Traversable:
    """The folder `configs` shipped inside `package`."""
    return files(package) / "configs"


def preset_names(presets: Traversable) -> list[str]:
    """Names of the presets in a folder, without `.yaml`."""
    return [entry.name.removesuffix(".yaml") for entry in presets.iterdir() if entry.name.endswith(".yaml")]


def find_config(chosen: str, presets: Traversable) -> tuple[Path | Traversable, str]:
    """Return the YAML file that `--config chosen` means, a preset or a path, and its name; UsageError if none."""
    if chosen in preset_names(presets):
        return presets / f"{chosen}.yaml", chosen
    path = Path(chosen)
    if path.is_file():
        return path, path.stem
    names = sorted(preset_names(presets))
    raise UsageError(
        f"error: --config {chosen}: no preset and no file of this name; presets: {', '.join(names)}"
        + _perhaps(chosen, names)
    )


def read_yaml(path: Path | Traversable) -> dict[str, Any]:
    """Return the mapping in a YAML file; raises UsageError naming file and line if it holds none."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"error: {path}: cannot be read: {error}") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2030-13-01
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", error)
        raise UsageError(f"error: {path.name}{line}: not valid YAML: {problem}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UsageError(f"error: {path.name}: must hold 'field: value' lines, found {type(content).__name__}")
    return {str(key): value for key, value in content.items()}


def to_yaml(config: object) -> str:
    """Return every field of a config as YAML that `--config` takes back."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)


def to_dict(config: object) -> dict[str, Any]:
    """Return a config as a dictionary of plain values (paths as text, tuples as lists)."""
    return TypeAdapter(type(config)).dump_python(config, mode="json")


def to_flags(values: Mapping[str, Any]) -> list[str]:
    """Return command-line flags for field values: {"nproc": 2} -> ["--nproc", "2"]."""
    flags: list[str] = []
    for name, value in values.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(flag if value else "--no-" + flag[2:])
        elif isinstance(value, list | tuple):
            flags += [flag, *map(str, value)]
        else:
            flags += [flag, "none" if value is None else str(value)]
    return flags


def field_names(config_class: type) -> list[str]:
    """Names of the fields of a config class, inherited ones first."""
    return [field.name for field in dataclasses.fields(config_class)]


class _UniqueKeyLoader(yaml.SafeLoader):
    """A SafeLoader that refuses a key given twice, where YAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                continue  # refused by the base class
            if key_node.value in seen:
                problem = f"'{key_node.value}' is given twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:
        raise UsageError(f"error: {message.removeprefix('argument ')}\nSee '{self.prog} --help'.")


class _HelpFormatter(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=118)


def _add_flags(parser: argparse.ArgumentParser, config_class: type) -> None:
    defaults = config_class()
    own = parser.add_argument_group("of this project") if issubclass(config_class, RunConfig) else parser
    common = parser.add_argument_group("of every project") if issubclass(config_class, RunConfig) else parser
    hints = typing.get_type_hints(config_class, include_extras=True)
    descriptions = _descriptions(config_class)
    for name in field_names(config_class):
        group = common if name in field_names(RunConfig) else own
        flag, default = "--" + name.replace("_", "-"), getattr(defaults, name)
        shown = "none" if default is None else " ".join(map(str, default)) if isinstance(default, tuple) else default
        text = f"{descriptions.get(name, '')} (default: {shown})".replace("%", "%%")
        if _takes_bool(config_class, name):
            group.add_argument(
                flag, dest=name, help=text, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS
            )
        else:
            nargs = "+" if typing.get_origin(hints[name]) is tuple else None
            action: Any = _NoneOrValue if type(None) in typing.get_args(hints[name]) else "store"
            group.add_argument(
                flag,
                dest=name,
                help=text,
                metavar=_metavar(hints[name]),
                type=_word_to_choice(hints[name]),
                nargs=nargs,
                action=action,
                default=argparse.SUPPRESS,
            )


class _NoneOrValue(argparse.Action):
    """For fields that may be empty: the word `none` empties them."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        setattr(namespace, self.dest, None if values == "none" else values)


def _word_to_choice(hint: Any) -> Callable[[str], Any]:
    """Return what makes a choice of a word: a number where `Literal` lists numbers, which pydantic leaves as words."""
    choices = {str(choice): choice for choice in typing.get_args(hint)} if typing.get_origin(hint) is Literal else {}
    return lambda word: choices.get(word, word)


def _descriptions(config_class: type) -> dict[str, str]:
    # pydantic keeps the docstrings of a class's own fields only, so collect them along the inheritance.
    found: dict[str, str] = {}
    for cls in reversed(config_class.__mro__):
        for name, info in getattr(cls, "__pydantic_fields__", {}).items():
            if info.description:
                found[name] = info.description
    return found


def _metavar(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _metavar(arguments[0])
    if origin is Literal:
        return "{" + ",".join(map(str, arguments)) + "}"
    if origin in (typing.Union, types.UnionType):
        return "|".join(_metavar(argument) for argument in arguments if argument is not type(None))
    if origin is tuple:
        return _metavar(arguments[0])
    return {"str": "TEXT", "Path": "PATH", "int": "INT", "float": "FLOAT"}.get(hint.__name__, hint.__name__.upper())


def _refuse_unknown(unknown: list[str], parser: argparse.ArgumentParser, prog: str) -> None:
    flags = [option for action in parser._actions for option in action.option_strings if option.startswith("--")]
    # What follows an unknown flag is most likely its value: speak of the flags, or of the words if there is no flag.
    named = [word for word in unknown if word.startswith("-")] or unknown
    if named:
        lines = []
        for word in named:
            flag = word.partition("=")[0]
            what = "no flag" if flag.startswith("-") else "an argument, but not expected here"
            lines.append(f"error: {flag}: {what} of {prog}{_perhaps(flag, flags)}")
        raise UsageError("\n".join(lines) + f"\nSee '{prog} --help'.")


def _messages(
    error: ValidationError,
    config_class: type,
    values: Mapping[str, Any],
    source: str,
    flags: frozenset[str],
    prog: str,
) -> typing.Iterator[str]:
    by_field: dict[str, list[Any]] = {}
    for detail in error.errors():
        by_field.setdefault(str(detail["loc"][0]) if detail["loc"] else "", []).append(detail)
    for key, details in by_field.items():
        kind = details[0]["type"]
        if not key:
            yield str(details[0].get("ctx", {}).get("error", details[0]["msg"]))
        elif kind == "unexpected_keyword_argument":
            names = field_names(config_class)
            yield f"{source or prog}: '{key}' is no field of {prog}{_perhaps(key, names)}"
        else:
            found, wanted = details[0]["input"], " or ".join(dict.fromkeys(_wanted(detail) for detail in details))
            if any(detail["type"] in ("missing", "too_short", "too_long") for detail in details):
                elements = typing.get_args(typing.get_type_hints(config_class)[key])
                found, wanted = " ".join(map(str, values[key])), f"{len(elements)} values"
            yield f"{_where(key, source, flags)}: {_show(found)} is not allowed: must be {wanted}"


def _wanted(detail: Any) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    comparisons = {
        "greater_than": ("greater than", "gt"),
        "greater_than_equal": ("at least", "ge"),
        "less_than": ("less than", "lt"),
        "less_than_equal": ("at most", "le"),
    }
    if kind in comparisons:
        words, bound = comparisons[kind]
        return f"{words} {context[bound]:g}"
    if kind == "literal_error":
        return str(context["expected"])
    if kind.startswith("int_"):
        return "a whole number"
    if kind.startswith("float_") or kind == "finite_number":
        return "a number"
    if kind.startswith("bool_"):
        return "true or false"
    if kind.startswith("string_"):
        return "text"
    if kind.startswith("path_"):
        return "a path"
    if kind in ("tuple_type", "list_type"):
        return "a list"
    if kind == "multiple_of":
        return f"a multiple of {context['multiple_of']}"
    return str(detail.get("ctx", {}).get("error", detail["msg"]))


def _where(key: str, source: str, flags: frozenset[str]) -> str:
    return "--" + key.replace("_", "-") if key in flags else f"{source}: {key}" if source else key


def _takes_bool(config_class: type, name: str) -> bool:
    hint = typing.get_type_hints(config_class)[name]
    return hint is bool or bool in typing.get_args(hint)


def _bool_as_text(value: Any) -> Any:
    if isinstance(value, list):
        return [_bool_as_text(item) for item in value]
    return str(value).lower() if isinstance(value, bool) else value


def _show(value: Any) -> str:
    if value is None:
        return "null"
    return repr(value) if isinstance(value, str) and not value.strip() else str(value)


def _perhaps(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; perhaps you meant {close[0]}" if close else ""


def _changed(config: object) -> list[str]:
    default = type(config)()
    return [name for name in field_names(type(config)) if getattr(config, name) != getattr(default, name)]
