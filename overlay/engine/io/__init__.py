"""Drivers of the Python engine: trio, sockets and the TUN."""
