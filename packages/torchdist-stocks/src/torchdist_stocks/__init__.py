"""Forecasts of stock prices with recurrent networks and torch.distributed, beside the baselines they have to beat."""
