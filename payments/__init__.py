"""Payments: books, tickets, purses and their settlement on chain."""
