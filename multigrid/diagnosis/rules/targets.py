"""Causes in anchors, cells and what they should predict."""
