"""How well encodings reconstruct masks, with nothing predicted."""
