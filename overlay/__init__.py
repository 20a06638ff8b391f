"""The overlay: identities, links, the engine and the node that joins circuits, exit and payments."""
