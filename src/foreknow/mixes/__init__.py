"""Training sets made from an audit."""
