"""python -m meinst_d2.commands COMMAND ...: what ``meinst COMMAND ...`` does, where nothing is installed."""

from meinst_d2.commands import main

main()
