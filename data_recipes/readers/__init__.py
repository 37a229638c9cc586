"""Readers: files on disk to a `Subject`."""
