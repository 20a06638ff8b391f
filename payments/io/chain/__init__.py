"""The chain under trio: endpoints, reading contracts, sending transactions, deployment, development chain."""
