"""Causes in decoding, suppression and metric."""
