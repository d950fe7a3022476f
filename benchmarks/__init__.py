"""Figures: us beside Enterprise Gateway's own proxy, in one run on one lab."""
