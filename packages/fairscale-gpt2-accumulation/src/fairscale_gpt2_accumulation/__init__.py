"""GPT-2 on WikiText-2 with FairScale: gradient accumulation under sharded data parallel training, and AdaScale."""
