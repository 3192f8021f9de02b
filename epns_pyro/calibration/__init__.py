"""Judging samples against truth: scores (arrays), diagnostics (labelled arrays), report (figures and HTML)."""
