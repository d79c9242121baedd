"""Lets ``python -m polyjax.cli`` run the ``polyjax`` command."""

from polyjax.cli.main import main

main()
