"""Task plug-ins, one file a kind. A task is data + metrics + a declaration."""
