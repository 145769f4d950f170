"""Fitting the mask components of a dataset."""
