"""The nodes: relay, exit and customer, joined from links, engine, circuits, exit and payments."""
