"""Chats: their formats, turns, reasoning, loss masks, and the labels of their answers."""
