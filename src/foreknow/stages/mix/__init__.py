"""foreknow mix: training sets made from an audit."""
