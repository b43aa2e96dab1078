"""EfficientNets on CIFAR-10 with DeepSpeed."""
