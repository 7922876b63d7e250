"""Cowshed storage driver on ZFS datasets and clones."""
