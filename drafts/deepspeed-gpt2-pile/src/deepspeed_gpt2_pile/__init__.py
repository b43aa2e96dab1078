"""GPT-2 on The Pile with DeepSpeed."""
