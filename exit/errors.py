"""The exit package's exceptions. Owns their types only.

A peer's fault is data (`None`, a reason, a counter) or, inside a `decode_*` function, `DecodeError`.
Everything else here is our own misuse, the operator's configuration, or an environment that cannot do what is
asked.
"""

from __future__ import annotations


class ExitError(Exception):
    """Root of the package's errors."""


class DecodeError(ExitError):
    """Bytes of a peer do not follow their format. Raised by `decode_*` functions only."""


class PolicyError(ExitError):
    """The operator's exit policy cannot be used.

    `line` counts from 1 in the text given; 0 means the text as a whole.
    """

    def __init__(self, line: int, problem: str, hint: str) -> None:
        """Keep the line, what is wrong with it, and what would be right."""
        where = f"exit policy, line {line}" if line else "exit policy"
        super().__init__(f"{where}: {problem}; {hint}")
        self.line = line
        self.problem = problem
        self.hint = hint


class EnvError(ExitError):
    """The machine refuses something the exit needs; the message is one sentence for the operator."""


class PrivilegeError(EnvError):
    """A capability, device file or program is missing; the message names it and says how to grant it."""


class ConflictError(EnvError):
    """Whole-device mode would break something that the operator surely wants to keep."""


class TunError(EnvError):
    """A TUN device cannot be opened, or went away while in use."""
