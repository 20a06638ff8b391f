"""Drivers of the local proxy: listeners, connections, UDP associations, names resolved at the exit."""
