"""``python -m polyjax.cli`` is ``polyjax`` too."""

from polyjax.cli.main import main

main()
