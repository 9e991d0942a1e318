"""Patches, one module for each library: importing one installs it, once."""
