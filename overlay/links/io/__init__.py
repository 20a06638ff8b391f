"""Links on real sockets and trio's clock."""
