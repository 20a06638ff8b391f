"""Drivers of the exit: TUN devices, network set-up, the DNS server, and checks of privileges."""
