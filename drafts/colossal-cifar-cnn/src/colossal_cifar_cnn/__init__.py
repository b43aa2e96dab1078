"""Convolutional networks on CIFAR-10 with Colossal-AI: ZeRO, Gemini and data parallel training through one Booster."""
