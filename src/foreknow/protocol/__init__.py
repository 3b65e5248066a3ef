"""The protocol of the paper, without a model: prompts, exemplars, exact match, categories."""
