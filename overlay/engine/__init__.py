"""The engine: what carries packets. Everything above it handles opaque control messages, keys and money."""
