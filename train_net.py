#!/usr/bin/env python
"""Train or evaluate MEInst: meinst train, under the name that Detectron2's users look for."""

from meinst_d2.commands.train import main

if __name__ == "__main__":
    main()
