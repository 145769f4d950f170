#!/usr/bin/env python
"""Fit the mask components of a dataset: meinst fit, under its old name."""

from meinst_d2.commands.fit import main

if __name__ == "__main__":
    main()
