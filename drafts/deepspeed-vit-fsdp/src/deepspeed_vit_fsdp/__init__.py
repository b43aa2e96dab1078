"""A vision transformer on CIFAR-100 with DeepSpeed: ZeRO-3, which shares out every byte of the training state."""
