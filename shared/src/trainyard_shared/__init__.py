"""What Trainyard's training projects have in common. Importing it imports no backend."""
