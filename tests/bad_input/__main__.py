"""Write what the readers say now into docs/bad-input.md, whose difference is to be read: python -m tests.bad_input."""

import os
import tempfile
from pathlib import Path

from tests.bad_input.case import call_of
from tests.bad_input.page import CASES, PAGE, as_markdown, cell_of

cells = {}
for key, case in CASES.items():
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        raised, said, _, _ = call_of(case, Path(folder))
    assert raised == case.error, (str(case), raised, said)
    cells[key] = cell_of(case, said)
PAGE.write_text(as_markdown(cells))
print(f"wrote {PAGE}")
