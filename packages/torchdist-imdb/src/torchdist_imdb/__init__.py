"""Sentiment of film reviews with a transformer and torch.distributed: fine-tuning from one process to several nodes."""
