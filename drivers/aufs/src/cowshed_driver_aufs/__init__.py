"""Cowshed storage driver on the aufs union file system."""
