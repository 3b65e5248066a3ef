"""The verdict of an audit: what its rows, facts and spans come to, in numbers and in sentences. Pure."""
