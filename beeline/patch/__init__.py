"""Patches, one module per library: importing a module installs its patch, once."""
