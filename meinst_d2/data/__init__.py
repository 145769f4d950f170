"""Annotations and images on their way to the model. Submodules are imported by name: some need no Detectron2."""
