"""The exit and the customer's namespace: TUN, inner addresses, exit policy, NAT and DNS."""
