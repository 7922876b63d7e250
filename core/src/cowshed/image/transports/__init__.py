"""Where images can be copied from and to: registries, layouts, archives, directories, and the store itself."""
