"""The two QUIC libraries behind one adapter (`base`): qh3 (Rust core, default) and aioquic (reference)."""
