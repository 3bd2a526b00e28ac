"""Reports: declared tables, figures, and what is behind a number."""
