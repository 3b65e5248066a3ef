"""`foreknow export`: the rows of an audit as tasks of other evaluation tools."""
