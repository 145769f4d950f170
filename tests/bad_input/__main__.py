"""Write docs/bad-input.md: python -m tests.bad_input."""

from __future__ import annotations

from tests.bad_input.page import PAGE, as_markdown

PAGE.write_text(as_markdown())
print(f"wrote {PAGE}")
