"""Discovery without a server: the directory that nodes keep alike by telling one another. Pure."""
