"""Middleware, one module for each framework."""
