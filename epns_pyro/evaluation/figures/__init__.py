"""Figures of the report as panels that are not drawn yet: matplotlib is imported only when the page is written."""
