"""Data sets that come along: packaged facts, ENTITYQUESTIONS, PopQA, the lab's made-up world."""
