"""A convolutional network on CIFAR-10 with torch.distributed."""
