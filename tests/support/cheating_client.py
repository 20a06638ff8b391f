"""A real client that stops paying: `python cheating_client.py WEI client --config FILE`.

Once its purse has paid WEI in all it gives no further ticket, whatever its guard asks, and goes on using it.
"""

from __future__ import annotations

import sys

from overlay.cli.main import main
from payments.payer_tab import PayerTab


def stop_paying_at(limit_wei: int) -> None:
    honest = PayerTab._pay

    def cheat(self: PayerTab, now: float, asked: bool = False) -> list:  # type: ignore[type-arg]
        return [] if self.worth_wei >= limit_wei else honest(self, now, asked)

    PayerTab._pay = cheat  # type: ignore[method-assign]


if __name__ == "__main__":
    stop_paying_at(int(sys.argv.pop(1)))
    main()
