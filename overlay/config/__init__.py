"""The configuration: settings with their units and limits, read from TOML, environment and command line."""
