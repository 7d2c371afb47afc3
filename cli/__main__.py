"""``python -m icecore.cli``: the same as the ``icecore`` command."""

from .app import main

main()
