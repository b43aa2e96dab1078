"""The data sets: where they come from, their checksums, their readers, and generated samples in the same formats."""
