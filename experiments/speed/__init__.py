"""Measurements of speed, always side by side with something."""
