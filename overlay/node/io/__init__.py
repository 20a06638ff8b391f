"""Drivers of the nodes: processes, files, sockets."""
