"""The version of the software, as packages, descriptors and `hopfare --version` give it."""

VERSION = "0.1.0"
