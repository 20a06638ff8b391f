"""Tabs on links: what neighbours owe each other, joined from `payments` and the engine's meters. Pure."""
