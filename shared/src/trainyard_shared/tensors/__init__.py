"""What several packages need in torch and no backend teaches. Torch is the package's own: none is pinned here."""
