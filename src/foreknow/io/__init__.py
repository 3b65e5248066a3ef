"""Bytes on disk and in object stores: readers and writers of every format, run folders, remote folders."""
