"""The sound tokenizer (VAE, vector quantizer, conditional-flow-matching decoder). Nothing is implemented here yet."""
