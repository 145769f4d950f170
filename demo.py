#!/usr/bin/env python
"""Draw what a trained model finds: meinst predict, under the name that Detectron2's users look for."""

from meinst_d2.commands.predict import main

if __name__ == "__main__":
    main()
