"""Causes in the network and its head."""
