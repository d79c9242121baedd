"""``python -m polyjax`` is ``polyjax``."""

from polyjax.cli.main import main

main()
