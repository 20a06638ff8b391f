"""The command line: `hopfare init | relay | exit | client | exec | status | circuits | demo | ...`."""
