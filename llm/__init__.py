"""The LLM that reads and writes sound tokens. Nothing is implemented here yet."""
