"""Sentiment of tweets with BERT and DeepSpeed."""
