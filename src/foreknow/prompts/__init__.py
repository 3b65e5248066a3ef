"""Write prompts: few-shot exemplars, templates, special tokens, the tokenizer's vocabulary."""
