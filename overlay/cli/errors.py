"""What the command line says, and the status it ends with, when something fails."""

from __future__ import annotations

from collections.abc import Iterator

from exit.errors import ExitError, PrivilegeError
from overlay.errors import AlreadyRunningError, ConfigError, NotRunningError, OverlayError
from payments.errors import PaymentsError, PurseBusyError

OK, FAILED, USAGE, NOT_RUNNING, NOT_WORKING, ALREADY_RUNNING, NO_PRIVILEGE = range(7)
INTERRUPTED = 130

EXIT_STATUS = (
    ("0", "Done, or stopped as asked (Ctrl-C, SIGTERM, hopfare stop)."),
    ("1", "Something failed; standard error says what."),
    ("2", "The command line or the configuration is wrong."),
    ("3", "No hopfare is running with this state folder."),
    ("4", "It runs, but does not work at the moment; status says why."),
    ("5", "Another hopfare runs with this state folder, or uses this key."),
    ("6", "A privilege is missing; standard error says which, and how to grant it."),
)


def flatten(error: BaseException) -> Iterator[BaseException]:
    """Go through the single exceptions of `error`, which nurseries may have put into groups."""
    if isinstance(error, BaseExceptionGroup):
        for part in error.exceptions:
            yield from flatten(part)
    else:
        yield error


def explain(error: BaseException) -> tuple[str, int] | None:
    """Return what to tell the user of an error and the exit status; None if it is none of ours: then it
    is a bug.
    """
    parts = list(flatten(error))
    for part in parts:
        if not isinstance(part, OverlayError | ExitError | PaymentsError | KeyboardInterrupt):
            return None
    spoken = [part for part in parts if not isinstance(part, KeyboardInterrupt)]
    if not spoken:
        return "interrupted", INTERRUPTED
    return "\n".join(dict.fromkeys(str(part) for part in spoken)), _find_status(spoken[0])


def _find_status(error: BaseException) -> int:
    for kind, status in (
        (ConfigError, USAGE),
        (NotRunningError, NOT_RUNNING),
        (AlreadyRunningError, ALREADY_RUNNING),
        (PurseBusyError, ALREADY_RUNNING),
        (PrivilegeError, NO_PRIVILEGE),
    ):
        if isinstance(error, kind):
            return status
    return FAILED
