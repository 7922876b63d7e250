"""Cowshed storage driver on btrfs subvolumes and snapshots."""
