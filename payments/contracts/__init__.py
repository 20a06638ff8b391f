"""The contracts on chain: Vyper sources, specification, and compiled artifacts. No Python lives here."""
