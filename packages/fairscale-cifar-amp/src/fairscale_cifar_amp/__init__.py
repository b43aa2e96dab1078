"""A convolutional network on CIFAR-10 with FairScale: sharded data parallel training in mixed precision."""
