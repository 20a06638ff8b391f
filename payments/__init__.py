"""Payments: books, tickets, purses and their settlement on chain.

The pure half needs no chain and no network:

- `books`, `digest`, `chains`, `keys`: what is signed, by whom, and the hash chains that tickets come from;
- `formats`: the same things as bytes on a link's control stream; `state`: as bytes in the ledger;
- `payer`, `payee`, `validator`: one purse seen from either side;
- `payer_tab`, `payee_tab`, `tab`: one link's account, which joins a purse to the engine's meters;
- `exposure`, `budget`, `pricing`: limits on what can be lost or spent, and prices;
- `redeemer`, `fees`: when to claim and what to pay for gas.

The other half is in `payments.io` (key files, ledger, chain, redemption task, development chain) and
`payments.contracts` (Vyper sources, ABI and bytecode). Nothing here is imported by a relay that takes no
payments; modules with heavy dependencies import them on first use. Specification: docs/protocol/payments.md.
"""
