"""Topics of news with BERT and Colossal-AI: tensor, pipeline and data parallel training in one layout."""
