"""Building blocks of the head."""
