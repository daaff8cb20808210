"""The tutorial as a notebook: python docs/notebook.py writes docs/tutorial.ipynb from docs/tutorial.md."""

import re
from pathlib import Path
from typing import Any

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

DOCS = Path(__file__).parent
PYTHON_BLOCK = re.compile(r"```python\n(.*?)```\n?", re.DOTALL)


def notebook_of(page: str) -> Any:
    """Blocks of Python become code cells, what lies between them Markdown cells. The same page gives the same bytes."""
    cells = []
    for index, text in enumerate(PYTHON_BLOCK.split(page)):  # text and code by turns
        if text.strip():
            make = new_code_cell if index % 2 else new_markdown_cell
            cells.append(make(text.strip(), id=f"cell-{len(cells)}"))
    return new_notebook(cells=cells, metadata={"language_info": {"name": "python"}})


if __name__ == "__main__":
    nbformat.write(notebook_of((DOCS / "tutorial.md").read_text(encoding="utf-8")), DOCS / "tutorial.ipynb")
