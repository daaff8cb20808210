"""`python -m unitscope`."""

from unitscope.cli import main

main()
