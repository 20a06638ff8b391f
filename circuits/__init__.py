"""Onion packets, the circuit build, path choice, guards and the pool of ready circuits. Pure code."""
