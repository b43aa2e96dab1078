"""Errors that are meant for the person at the keyboard: shown as one message, without a traceback."""


class TrainyardError(Exception):
    """Something the user can mend. The message says what was found, where, and what to do."""

    exit_status = 1


class UsageError(TrainyardError):
    """A flag, a preset or a config file is wrong."""

    exit_status = 2


class DataError(TrainyardError):
    """Data or weights are missing, incomplete, corrupt or not of the expected form."""


def message(error: TrainyardError) -> str:
    """Return what to print for an error: its text, which begins with `error:` whoever raised it."""
    text = str(error)
    return text if text.startswith("error:") else f"error: {text}"
