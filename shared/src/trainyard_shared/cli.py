"""The outermost layer of every command: errors become one message and an exit status."""

import functools
import os
import sys
from collections.abc import Callable, Mapping, Sequence

from trainyard_shared.config import _perhaps
from trainyard_shared.errors import TrainyardError, message

Command = Callable[[Sequence[str]], int | None]


def command(function: Command) -> Callable[..., int]:
    """Make a console script of a function that takes the arguments and returns an exit status.

    Without arguments the script takes those of the process. A `TrainyardError` is printed on rank 0 only, without a
    traceback; Ctrl-C ends quietly with status 130.
    """

    @functools.wraps(function)
    def script(argv: Sequence[str] | None = None) -> int:
        try:
            status = function(sys.argv[1:] if argv is None else argv) or 0
            sys.stdout.flush()
            return status
        except TrainyardError as error:
            if os.environ.get("RANK", "0") == "0":
                print(message(error), file=sys.stderr)
            return error.exit_status
        except KeyboardInterrupt:
            return 130
        except BrokenPipeError:
            # The reader of a pipe (`| head`) has gone; keep Python from complaining again at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141

    return script


def dispatch(prog: str, description: str, commands: Mapping[str, Callable[..., int]], argv: Sequence[str]) -> int:
    """Run `argv[0]` among `commands` with the rest of the arguments: the command named as the package."""
    if argv and argv[0] in commands:
        return commands[argv[0]](argv[1:])
    lines = [f"usage: {prog} COMMAND ...", "", description, "", "commands:"]
    lines += [f"  {name:<12} {(verb.__doc__ or '').splitlines()[0]}" for name, verb in commands.items()]
    lines += ["", f"'{prog} COMMAND --help' tells more."]
    if argv and argv[0] in ("-h", "--help"):
        print("\n".join(lines))
        return 0
    if argv:
        print(f"error: {argv[0]}: no command of {prog}{_perhaps(argv[0], list(commands))}", file=sys.stderr)
    else:
        print("\n".join(lines), file=sys.stderr)
    return 2
