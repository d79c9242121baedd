"""The ``polyjax`` command: a file per subcommand; nothing is imported from here."""
