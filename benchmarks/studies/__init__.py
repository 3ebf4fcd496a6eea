"""Comparisons that are run by hand, each a command."""
