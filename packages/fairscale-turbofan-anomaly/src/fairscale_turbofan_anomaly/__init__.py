"""Failing turbofan engines found by recurrent networks and transformers, with FairScale checkpointing."""
