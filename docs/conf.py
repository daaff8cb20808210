"""How Sphinx builds the pages."""

project = "unitscope"
author = "The unitscope developers"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build", "cli.md"]  # cli.md is part of command-line.md
html_theme = "furo"
html_title = "unitscope"
smartquotes_action = "qe"  # not the dashes: options begin with two
default_role = "code"
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
suppress_warnings = ["myst.xref_missing", "myst.header"]
