"""Middleware, one module per framework."""
