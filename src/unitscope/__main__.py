"""`python -m unitscope`."""

import sys

from unitscope.cli import main

sys.exit(main())
