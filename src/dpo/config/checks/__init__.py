"""What a config that is well typed may still not say."""
