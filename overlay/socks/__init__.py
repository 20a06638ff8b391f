"""The local proxy: SOCKS5 and HTTP CONNECT in, connections inside the customer's namespace out."""
