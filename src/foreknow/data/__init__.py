"""Rows of any file as one `Dataset`: layouts, chats, checks, near duplicates."""
