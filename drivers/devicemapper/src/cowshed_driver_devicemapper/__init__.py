"""Cowshed storage driver on device-mapper thin pools."""
