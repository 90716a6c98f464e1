"""Doors for other people's tools; each file imports its tool, and nothing of the package imports them."""
