"""Where the configuration is read from: the file, the environment, the user's folders."""
