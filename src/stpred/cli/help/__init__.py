"""What ``--help`` prints, examples, and what the shell completes."""
