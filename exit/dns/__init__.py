"""DNS at the exit's inner address: reading questions, rules, answers, and the cache. The server is
`exit.io.dns`.
"""
