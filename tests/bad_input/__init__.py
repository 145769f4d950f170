"""Files that are wrong, by reader, with what a user gets; docs/bad-input.md is made of them."""
