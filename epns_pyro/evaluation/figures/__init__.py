"""Figures of the report as panels that are not drawn yet: matplotlib is first needed by the page."""
