"""What the model reads: configuration, images, text and chats. Knows no engine and no torch."""
