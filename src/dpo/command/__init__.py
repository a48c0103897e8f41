"""What only the command `dpo-train` needs: flags of the first tool of this kind, and completion in a shell."""
