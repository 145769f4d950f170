"""Files of weights: read without running code, written whole or not at all, resumed from the last whole one."""
