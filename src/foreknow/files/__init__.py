"""Bytes on disk and in object stores: sources, formats, run folders."""
