"""What a chat template is given of a conversation, and which part of what it makes of it is the answer."""
