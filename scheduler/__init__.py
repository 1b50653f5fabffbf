"""Wattbalance: places GPU pods by measured load and keeps every power feed under its budget."""

__version__ = "0.1.0"
